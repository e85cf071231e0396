"""The commands `gmdf predict` and `gmdf info`."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.common.files import write_json
from gmdf_hf.common.locks import locked_folder
from gmdf_hf.evaluation.classifier import split_revision
from gmdf_hf.scripts import gmdf as command
from gmdf_hf.scripts.predict import UNREADABLE
from gmdf_hf.serving.results import verdict
from gmdf_hf.training.checkpoint import save_model
from tests import processes
from tests.conftest import tiny_model
from tests.evaluation.test_report import RESULTS
from tests.media import numbered, write_video

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "model", tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32), slim=True)
    write_json(folder / "results.json", RESULTS)
    return str(folder / "model")


@pytest.fixture
def folder(tmp_path):
    """Two pictures, a video, a broken picture, a broken video and a hidden file."""
    root = tmp_path / "files"
    (root / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "deep/b c,d.png"):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(root / name)
    write_video(root / "deep" / "e.mp4", numbered(3))
    (root / "f.png").write_bytes(b"not a picture")
    (root / "g.mp4").write_bytes(b"not a video")
    (root / ".hidden.png").write_bytes(b"not looked at")
    return root


class Result(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


def gmdf(*arguments: object) -> Result:
    """Output and exit status of a command, run in this process."""
    status = 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            command.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
    return Result(status, out.getvalue(), err.getvalue())


def test_a_folder_survives_its_broken_files(model, folder):
    result = gmdf("predict", folder, folder / "none.png", "--model", model, "--detector", "none")
    assert result.exit_code == UNREADABLE
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    assert [line.split()[0] in ("fake", "real") for line in lines] == [True, False, False, True, True, False]
    assert "f.png: not a readable image" in lines[1]
    assert "g.mp4: not a readable video" in lines[2]
    assert "none.png: no such file" in lines[5]
    assert "3 error" in result.stderr


def test_json_and_csv_say_the_same(model, folder):
    options = ("predict", folder, "--model", model, "--detector", "none")
    lines = [json.loads(line) for line in gmdf(*options, "--json").stdout.splitlines()]
    rows = list(csv.DictReader(gmdf(*options, "--csv").stdout.splitlines()))
    assert len(lines) == len(rows) == 5
    for line, row in zip(lines, rows, strict=True):
        assert row["source"] == line["source"]
        assert row["label"] == (line["label"] or "")
        assert row["error"] == (line["error"] or "")
        assert row["score"] == ("" if line["score"] is None else str(line["score"]))
        assert int(row["faces"]) == len(line["faces"])
    good = next(line for line in lines if line["source"].endswith("b c,d.png"))
    assert good["threshold"] == 0.25
    assert good["faces"][0].keys() >= {"box", "score", "expert_weights"}
    assert gmdf(*options, "--json", "--csv").exit_code == 2


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_it_continues_where_it_stopped_and_tries_errors_again(model, folder, tmp_path, form):
    output = tmp_path / "out"
    # One face per batch: the last bit of a score may depend on the rest of its batch.
    options = ("--model", model, "--detector", "none", "--batch_size", "1", form, "--output")
    first = gmdf("predict", folder / "a.png", folder / "f.png", *options, output)
    assert first.exit_code == UNREADABLE
    whole = output.read_text()
    good = "".join(line for line in whole.splitlines(keepends=True) if "f.png" not in line)
    output.write_text(whole + whole.splitlines()[-1][:20])  # killed during writing
    second = gmdf("predict", folder, *options, output)
    assert "4 files" in second.stderr and "1 more were done before" in second.stderr
    assert output.read_text().startswith(good)
    gmdf("predict", folder, *options, tmp_path / "at_once")
    assert sorted(output.read_text().splitlines()) == sorted((tmp_path / "at_once").read_text().splitlines())
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "f.png")  # the broken file is replaced
    third = gmdf("predict", folder, *options, output)
    assert "2 files" in third.stderr and third.exit_code == UNREADABLE  # g.mp4 is still broken
    assert len(output.read_text().splitlines()) == (5 if form == "--json" else 6)


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_a_file_that_was_replaced_is_scored_again(model, folder, tmp_path, form):
    output, options = tmp_path / "out", ("--model", model, "--detector", "none", "--batch_size", "1", form, "--output")
    name = tmp_path / "=a.png"  # escaped in the CSV
    shutil.copy(folder / "a.png", name)
    gmdf("predict", name, folder / "a.png", *options, output)
    first = output.read_text().splitlines()
    assert "2 more were done before" in gmdf("predict", name, folder / "a.png", *options, output).stderr
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(name)
    assert "1 more were done before" in gmdf("predict", name, folder / "a.png", *options, output).stderr
    second = output.read_text().splitlines()
    assert len(second) == len(first) and len(set(first) & set(second)) == len(first) - 1


def test_two_runs_never_write_one_output(model, folder, tmp_path):
    with locked_folder(tmp_path, "-out.csv"):
        result = gmdf("predict", folder / "a.png", "--model", model, "--csv", "--output", tmp_path / "out.csv")
    assert result.exit_code == 1 and "is in use by process" in result.stderr
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "change", [("--threshold", "0.9"), ("--frames", "3"), ("--dtype", "bfloat16"), ("--model", "other")]
)
def test_results_of_other_settings_are_not_mixed(model, folder, tmp_path, change):
    output = tmp_path / "out.csv"
    options = {"--model": model, "--detector": "none", "--output": str(output)}
    assert gmdf("predict", folder / "a.png", "--csv", *sum(options.items(), ())).exit_code == 0
    before = output.read_text()
    if change[1] == "other":
        save_model(
            tmp_path / "other", tiny_model(logit_scale_init_value=4.0), GMDFImageProcessor.of_size(32), slim=True
        )
        change = ("--model", str(tmp_path / "other"))
    result = gmdf("predict", folder / "a.png", "--csv", *sum((options | dict([change])).items(), ()))
    assert result.exit_code == 1 and "holds results of other settings" in result.stderr
    assert output.read_text() == before


def test_a_file_that_is_no_output_is_left_alone(model, folder, tmp_path):
    letter = tmp_path / "letter"
    letter.write_text("Dear reader,\nthis is no output of ours.\n")
    for beside in (None, "copied"):
        if beside:
            gmdf(
                "predict",
                folder / "a.png",
                "--model",
                model,
                "--detector",
                "none",
                "--json",
                "--output",
                tmp_path / "x",
            )
            (tmp_path / "letter.settings.json").write_text((tmp_path / "x.settings.json").read_text())
        result = gmdf("predict", folder, "--model", model, "--detector", "none", "--json", "--output", letter)
        assert result.exit_code == 1 and "hint: Choose another --output" in result.stderr
        assert letter.read_text().endswith("ours.\n")


def test_names_of_any_bytes_have_their_line(model, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "a.png")
    names = [
        b"caf\xe9.png",
        "gr\u00fc\u00df.png".encode(),
        b"line\nreal     0.001 x.png",
        b"\x1b[31mred.png",
        b"=cmd|calc.jpg",
    ]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes((folder / "a.png").read_bytes())
    # One process for the three forms, fresh because Python reads these variables when it starts.
    code = """
import sys
from gmdf_hf.scripts.gmdf import main
for form in ("--json", "--csv", ""):
    try:
        main([*sys.argv[1:], *filter(None, [form])])
    except SystemExit as end:
        assert not end.code
    print("end of form")
"""
    environment = os.environ | {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, "predict", ".", "--detector", "none", "--model", model]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    parts = result.stdout.decode("utf-8").split("end of form\n")
    for form, part in zip(("--json", "--csv", None), parts[:-1], strict=True):
        lines = part.splitlines()
        if form == "--json":
            assert {os.fsencode(json.loads(line)["source"])[2:] for line in lines} == {b"a.png", *names}
            continue
        assert len(lines) == len(names) + (2 if form == "--csv" else 1)
        text = "\n".join(lines)
        assert r"caf\xe9.png" in text and "gr\u00fc\u00df.png" in text and r"\x1b[31mred" in text


def test_a_spreadsheet_takes_no_name_for_a_formula(model, tmp_path, monkeypatch):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "=cmd|calc.png")
    monkeypatch.chdir(tmp_path)
    options = ("--model", model, "--detector", "none", "--csv", "--output", "out.csv")
    assert gmdf("predict", "=cmd|calc.png", "-x.png", *options).exit_code == 2  # `-x.png` is no option
    assert gmdf("predict", "=cmd|calc.png", "@SUM(A1).png", *options).exit_code == UNREADABLE
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["source"] for row in rows] == ["'=cmd|calc.png", "'@SUM(A1).png"]
    assert all(not cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    assert "1 more were done before" in gmdf("predict", "=cmd|calc.png", *options).stderr


def test_linked_folders_are_followed_once(model, folder, tmp_path):
    (folder / "link").symlink_to(folder / "deep")
    (folder / "deep" / "circle").symlink_to(folder)
    (tmp_path / "outside").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "outside" / "h.png")
    (folder / "deep" / "more").symlink_to(tmp_path / "outside")
    result = gmdf("predict", folder, "--model", model, "--detector", "none")
    names = [line.split(":")[0].rsplit("/", 1)[-1] for line in result.stdout.splitlines()]
    assert sorted(names) == ["a.png", "b c,d.png", "e.mp4", "f.png", "g.mp4", "h.png"]


def test_an_empty_folder_has_a_status_of_its_own(model, tmp_path):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    result = gmdf("predict", tmp_path / "empty", "--model", model)
    assert result.exit_code == 6 and "No files found in" in result.stderr and "hint: " in result.stderr


def test_one_bad_address_does_not_end_a_batch(model, folder):
    result = gmdf("predict", "http://[::1", folder / "a.png", "--model", model, "--detector", "none")
    lines = result.stdout.splitlines()
    assert result.exit_code == UNREADABLE and len(lines) == 2
    assert "http://[::1: not a valid address" in lines[0] and lines[1].split()[0] in ("fake", "real")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.slow
def test_a_full_disk_is_one_sentence(model, folder):
    code = "from gmdf_hf.scripts.gmdf import main; main()"
    words = ("predict", folder / "a.png", "--model", model, "--detector", "none")
    with open("/dev/full", "w") as full:
        result = processes.run("-c", code, *words, stdout=full)
    assert result.returncode == 1
    assert "The results cannot be written to the standard output: No space left" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_revision_is_an_option_or_part_of_the_name(model):
    for words in (["nobody/none@v1"], ["nobody/none", "--revision", "v1"], ["nobody/none@v1", "--revision", "v1"]):
        assert split_revision(words[0], words[2] if len(words) > 1 else None) == ("nobody/none", "v1")
    assert split_revision(model) == (model, None)
    result = gmdf("info", "nobody/none@v1", "--revision", "v2")
    assert result.exit_code == 1 and "names the revision 'v1', and --revision is 'v2'" in result.stderr


def test_heatmaps_are_written_one_a_person(model, folder, tmp_path):
    options = ("--model", model, "--detector", "none", "--json", "--heatmaps", tmp_path / "maps")
    result = gmdf("predict", folder / "a.png", folder / "deep", *options)
    assert result.exit_code == 0, result.stderr
    assert all(not {"heatmap", "crop"} & json.loads(line)["faces"][0].keys() for line in result.stdout.splitlines())
    pictures = sorted((tmp_path / "maps").iterdir())
    assert len(pictures) == 3
    assert pictures[0].name.startswith("a.png-") and pictures[0].name.endswith("-person0-frame0.png")
    original = np.asarray(Image.open(folder / "a.png").convert("RGB")).astype(int)
    assert np.abs(np.asarray(Image.open(pictures[0])).astype(int) - original).max() > 20


def test_info_tells_domains_threshold_sizes_and_results(model):
    text = gmdf("info", model).stdout
    for words in ("a, b, c", "0.25", "unseen", "M_EER"):
        assert words in text
    facts = json.loads(gmdf("info", model, "--json").stdout)
    assert facts["domains"] == ["a", "b", "c"]
    assert facts["parameters"] == sum(p.numel() for p in tiny_model().parameters()) - sum(
        p.numel()
        for name, p in tiny_model().named_parameters()
        if name.startswith(("text_model", "text_projection", "mim_head"))
    )
    assert facts["results"] == RESULTS


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--model", "/no/such/model"), "The model '/no/such/model' cannot be used"),
        (("--detector_weights", "/no/such/weights"), "Detector weights not found"),
        (("--detector", "eyes"), "invalid choice: 'eyes'"),
    ],
)
def test_what_cannot_be_used_is_told_before_any_file_is_read(model, folder, wrong, words):
    options = {"--model": model, "--detector": "yunet"} | dict([wrong])
    result = gmdf("predict", folder, *(word for pair in options.items() for word in pair))
    assert result.exit_code in (1, 2, 8) and result.stdout == ""
    message, hint = result.stderr.strip().splitlines()[-2:]
    assert words in message + hint
    assert "Traceback" not in result.stderr


def test_real_videos_and_odd_files(model, real_data, tmp_path):
    weights = str(real_data.parent / "models" / "yunet_n_dynamic.onnx")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(real_data / "videos" / "no_face.mp4").read_bytes()[:5000])
    sources = (real_data / "videos", broken, real_data / "odd")
    result = gmdf("predict", *sources, "--model", model, "--detector_weights", weights, "--frames", 4, "--json")
    assert result.exit_code == UNREADABLE
    found = {Path(line["source"]).name: line for line in map(json.loads, result.stdout.splitlines())}
    assert len(found) == 11 + 1 + len(list((real_data / "odd").iterdir()))
    videos = {name: line for name, line in found.items() if name.endswith(".mp4")}
    assert {name for name, line in videos.items() if verdict(line) == "no face"} == {"no_face.mp4"}
    assert {name for name, line in videos.items() if line["error"] is not None} == {"broken.mp4"}


def test_a_parquet_list_names_files(model, folder, tmp_path):
    names = pa.table({"path": [str(folder / "a.png"), "files/deep/e.mp4", "none.png"]})
    pq.write_table(names, tmp_path / "list.parquet")
    result = gmdf("predict", tmp_path / "list.parquet", "--model", model, "--detector", "none", "--json")
    assert result.exit_code == UNREADABLE
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["error"] is None for line in lines] == [True, True, False]
    assert lines[1]["source"] == str(tmp_path / "files/deep/e.mp4")
    pq.write_table(pa.table({"file": ["a.png"]}), tmp_path / "other.parquet")
    result = gmdf("predict", tmp_path / "other.parquet", "--model", model, "--detector", "none")
    assert result.exit_code == 1 and "column `path`" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_ray_gives_the_same_rows_and_goes_on_after_a_kill(model, folder, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(120):
        shutil.copy(folder / "a.png", many / f"{number:03}.png")
    output = tmp_path / "ray.jsonl"
    options = ["predict", str(folder), str(many), "--model", model, "--detector", "none", "--json", "--batch_size", "1"]
    ray = [*options, "--engine", "ray", "--processes", "2", "--output", str(output)]
    code = "from gmdf_hf.scripts.gmdf import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *ray], stderr=subprocess.DEVNULL, cwd=ROOT)
    while not (output.exists() and output.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    written = [json.loads(line)["source"] for line in output.read_text().splitlines()[:-1]]
    assert 0 < len(written) < 125
    done = subprocess.run([sys.executable, "-c", code, *ray], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == UNREADABLE, done.stderr
    lines = {line["source"]: line for line in map(json.loads, output.read_text().splitlines())}
    expected = {line["source"]: line for line in map(json.loads, gmdf(*options).stdout.splitlines())}
    assert len(output.read_text().splitlines()) == len(lines) == 125 and lines.keys() == expected.keys()
    for source, line in expected.items():
        assert lines[source].pop("score") == pytest.approx(line.pop("score"), abs=1e-5), source
        kept = ("label", "error", "faces_found", "frames_read")
        assert {name: lines[source][name] for name in kept} == {name: line[name] for name in kept}


@pytest.mark.slow
def test_an_interrupted_run_goes_on_without_a_gap_or_a_double(model, tmp_path):
    folder, output = tmp_path / "many", tmp_path / "out.csv"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(600):
        pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png", compress_level=1)
    options = ["predict", str(folder), "--model", model, "--detector", "none", "--csv", "--output", str(output)]
    # The program interrupts itself: on a busy machine it may finish before another process sees its start.
    code = """
import os, signal
from gmdf_hf.scripts.gmdf import main
from gmdf_hf.serving.results import ResultFile
write, written = ResultFile.write, []
def write_and_interrupt(*arguments):
    write(*arguments)
    written.append(arguments)
    if len(written) == 100:
        os.kill(os.getpid(), signal.SIGINT)
ResultFile.write = write_and_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
main()
"""
    process = processes.run("-c", code, *options)
    assert process.returncode == command.INTERRUPTED
    written = len(output.read_text().splitlines())
    assert 100 <= written < 600
    assert gmdf(*options).exit_code == 0
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [Path(row["source"]).name for row in rows] == [f"{number:04}.png" for number in range(600)]


def test_segments_are_listed_in_seconds(model, folder):
    words = ("--model", model, "--detector", "none", "--threshold", "0", "--segments", "--frames", "3")
    shown = gmdf("predict", folder / "deep" / "e.mp4", *words)
    assert shown.exit_code == 0, shown.stderr
    assert "person 1: 0.00 s to" in shown.stdout and "of 3 frames" in shown.stdout
    line = json.loads(gmdf("predict", folder / "deep" / "e.mp4", *words, "--json").stdout)
    (segment,) = line["persons"][0]["segments"]
    assert segment["start"] == line["faces"][0]["seconds"] == 0 and segment["end"] == line["faces"][-1]["seconds"] > 0
    assert line["persons"][0]["scores"].keys() == {"mean", "top", "segment"} and line["person_score"] == "mean"
    top = json.loads(gmdf("predict", folder / "deep" / "e.mp4", *words, "--json", "--person_score", "top").stdout)
    assert top["score"] == pytest.approx(max(face["score"] for face in line["faces"]), abs=1e-5)
