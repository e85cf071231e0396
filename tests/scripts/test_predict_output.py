"""The output of `gmdf predict`: continued, never mixed, never lost."""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.common.locks import locked_folder
from gmdf_hf.scripts import gmdf as command
from gmdf_hf.scripts.predict import UNREADABLE
from gmdf_hf.training.checkpoint import save_model
from tests import processes
from tests.conftest import tiny_model
from tests.scripts.command import gmdf

ROOT = Path(__file__).parents[2]


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
