"""The command `gmdf`, as it is typed."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.common.errors import UserError
from gmdf_hf.common.files import write_json
from gmdf_hf.scripts import gmdf as cli
from gmdf_hf.training.checkpoint import save_model
from tests.conftest import tiny_model
from tests.evaluation.test_report import RESULTS
from tests.media import numbered, write_video


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "model", tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32), slim=True)
    write_json(folder / "results.json", RESULTS)
    return str(folder / "model")


@pytest.fixture
def folder(tmp_path):
    """Two pictures, a video, a broken file of each kind, one hidden file."""
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


def gmdf(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_a_folder_survives_its_broken_files(model, folder):
    result = gmdf("predict", folder, folder / "none.png", "--model", model, "--detector", "none")
    assert result.exit_code == cli.UNREADABLE
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
def test_it_goes_on_where_it_stopped(model, folder, tmp_path, form):
    output = tmp_path / "out"
    # One face a batch: a score's last bit may depend on what else is in its batch.
    options = ("--model", model, "--detector", "none", "--batch_size", "1", form, "--output")
    first = gmdf("predict", folder / "a.png", folder / "f.png", *options, output)
    assert first.exit_code == cli.UNREADABLE
    whole = output.read_text()
    output.write_text(whole + whole.splitlines()[-1][:20])  # killed while it wrote
    second = gmdf("predict", folder, *options, output)
    assert "3 files" in second.stderr and "2 more were done before" in second.stderr
    assert output.read_text().startswith(whole)
    gmdf("predict", folder, *options, tmp_path / "at_once")
    assert sorted(output.read_text().splitlines()) == sorted((tmp_path / "at_once").read_text().splitlines())
    (tmp_path / "letter").write_text("Dear reader,\nthis is no output of ours.\n")
    with pytest.raises(UserError, match="holds no results of `gmdf predict`"):
        cli.read_done(tmp_path / "letter", form == "--json")
    assert (tmp_path / "letter").read_text().endswith("ours.\n")


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


def test_help_has_examples():
    for command in ("predict", "info", "demo"):
        assert f"gmdf {command} " in gmdf(command, "--help").stdout


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--model", "/no/such/model"), "The model '/no/such/model' cannot be used"),
        (("--detector_weights", "/no/such/weights"), "Detector weights not found"),
        (("--detector", "eyes"), "Unknown detector 'eyes'"),
    ],
)
def test_what_cannot_be_used_is_told_before_any_file_is_read(model, folder, wrong, words):
    options = {"--model": model, "--detector": "yunet"} | dict([wrong])
    result = gmdf("predict", folder, *(word for pair in options.items() for word in pair))
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception) and "\n" not in str(result.exception)
    assert result.stdout == ""


def test_a_users_mistake_is_one_sentence(folder):
    code = "from gmdf_hf.scripts.gmdf import main; main()"
    command = [sys.executable, "-c", code, "predict", str(folder), "--model", "/no/such/model"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == cli.UNUSABLE
    assert result.stderr.startswith("gmdf: The model") and len(result.stderr.strip().splitlines()) == 1


def test_real_videos_and_odd_files(model, real_data, tmp_path):
    weights = str(real_data.parent / "models" / "yunet_n_dynamic.onnx")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(real_data / "videos" / "no_face.mp4").read_bytes()[:5000])
    sources = (real_data / "videos", broken, real_data / "odd")
    result = gmdf("predict", *sources, "--model", model, "--detector_weights", weights, "--frames", 4, "--json")
    assert result.exit_code == cli.UNREADABLE
    found = {Path(line["source"]).name: line for line in map(json.loads, result.stdout.splitlines())}
    assert len(found) == 11 + 1 + len(list((real_data / "odd").iterdir()))
    videos = {name: line for name, line in found.items() if name.endswith(".mp4")}
    assert {name for name, line in videos.items() if cli.verdict(line) == "no face"} == {"no_face.mp4"}
    assert {name for name, line in videos.items() if line["error"] is not None} == {"broken.mp4"}


@pytest.mark.slow
def test_an_interrupted_run_goes_on_without_a_gap_or_a_double(model, tmp_path):
    folder, output = tmp_path / "many", tmp_path / "out.csv"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(600):
        pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png", compress_level=1)
    options = ["predict", str(folder), "--model", model, "--detector", "none", "--csv", "--output", str(output)]
    # The program interrupts itself: on a busy machine it may be done before somebody else sees that it has begun.
    code = """
import os, signal
from gmdf_hf.scripts import gmdf as cli
write, written = cli.write_result, []
def write_and_interrupt(*arguments):
    write(*arguments)
    written.append(arguments)
    if len(written) == 100:
        os.kill(os.getpid(), signal.SIGINT)
cli.write_result = write_and_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
cli.main()
"""
    process = subprocess.run([sys.executable, "-c", code, *options], stderr=subprocess.PIPE, check=False)
    assert process.returncode == cli.INTERRUPTED
    written = len(output.read_text().splitlines())
    assert 100 <= written < 600
    assert gmdf(*options).exit_code == 0
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [Path(row["source"]).name for row in rows] == [f"{number:04}.png" for number in range(600)]
