"""The command `gmdf calibrate`, and how the other commands use its result."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.training.checkpoint import save_model
from tests.conftest import tiny_model
from tests.domains import write_domain
from tests.scripts.command import gmdf


@pytest.fixture
def model(tmp_path) -> Path:
    save_model(tmp_path / "model", tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32), slim=True)
    return tmp_path / "model"


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def test_reals_alone_give_a_threshold_that_every_command_uses(model, tmp_path):
    before = (model / "model.safetensors").read_bytes()
    reals = photos(tmp_path / "reals", 60)
    options = ("--model", model, "--reals", reals, "--detector", "none")
    refused = gmdf("calibrate", *options, "--max_fpr", "0.001")
    assert refused.exit_code == 1 and "2995 are needed" in refused.stderr
    assert not (model / "operating_point.json").exists()
    found = gmdf("calibrate", *options, "--max_fpr", "0.05")
    assert found.exit_code == 0, found.stderr
    assert "60 files with a scored face" in found.stdout and "0 of 60 real ones" in found.stdout
    point = json.loads((model / "operating_point.json").read_text())
    assert point["schema"] == 1 and point["slope"] is None and point["fakes"] == 0
    assert (model / "model.safetensors").read_bytes() == before
    lines = gmdf("predict", reals, "--model", model, "--detector", "none", "--json")
    assert "Operating point: fake from" in lines.stderr
    results = [json.loads(line) for line in lines.stdout.splitlines()]
    assert {result["threshold"] for result in results} == {point["threshold"]}
    labels = [result["label"] for result in results]
    assert "fake" not in labels and "uncertain" in labels  # the highest scores are within the threshold's uncertainty
    assert all((r["score"] >= point["uncertain_from"]) == (r["label"] == "uncertain") for r in results)
    assert "uncertain" not in gmdf("predict", reals, "--model", model, "--detector", "none", "--threshold", 0.5).stdout
    assert "at most 5.000% of real faces flagged" in gmdf("info", model).stdout


def test_a_domain_gives_calibration_and_a_check(model, tmp_path):
    write_domain(tmp_path / "domain", 0)
    options = ("--model", model, "--domains", f"x={tmp_path / 'domain'}", "--max_fpr", "0.6", "--confidence", "0.6")
    found = gmdf("calibrate", *options, "--method", "platt", "--check", "--output", tmp_path / "point.json")
    if "cannot be calibrated" in found.stderr:  # a random model may order the classes the wrong way round
        pytest.skip(found.stderr)
    assert found.exit_code == 0, found.stderr
    assert (
        "expected calibration error" in found.stdout
        and "test: asked for a false-positive rate of 60.00%" in found.stdout
    )
    assert not (model / "operating_point.json").exists()
    scored = gmdf("evaluate", "--model", model, "--domains", f"x={tmp_path / 'domain'}", "--output_dir", tmp_path / "s")
    assert scored.exit_code == 0, scored.stderr
    assert json.loads((tmp_path / "s" / "results.json").read_text())["threshold"] == 0.25


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name either --domains, or --reals"),
        (("--reals", "x", "--check"), "--check and --miss_rate need fakes"),
        (("--reals", "x", "--max_fpr", "0"), "max_fpr"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(model, words, message):
    found = gmdf("calibrate", "--model", model, *words)
    assert found.exit_code == 2 and message in found.stderr
