"""The commands `gmdf predict` and `gmdf info`."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gmdf_hf.evaluation.classifier import split_revision
from gmdf_hf.scripts.predict import UNREADABLE
from gmdf_hf.serving.results import verdict
from tests.conftest import tiny_model
from tests.evaluation.test_report import RESULTS
from tests.scripts.command import gmdf


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
