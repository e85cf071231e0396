"""Damaged checkpoints raise the documented error: no wrong scores, no other exceptions."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gmdf_hf import GMDFImageProcessor, GMDFModel
from gmdf_hf.common.errors import UserError
from gmdf_hf.modeling.loading_gmdf import BrokenModelError
from gmdf_hf.modeling.untrusted_gmdf import check_processor
from gmdf_hf.serving.loading import load_model, load_pipeline
from gmdf_hf.training.checkpoint import save_model
from tests.conftest import tiny_model

KEY = "visual_projection.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, tiny_model(), GMDFImageProcessor.of_size(32), slim=True)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in fields.items():
        (config["vision_config"] if key in config["vision_config"] else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))


WEIGHTS = {
    "missing": (lambda w: w.pop(KEY), "weights are missing: visual_projection.weight"),
    "unexpected": (lambda w: w.update(other=torch.zeros(1)), "weights are unexpected: other"),
    "int8": (lambda w: w.update({KEY: w[KEY].to(torch.int8)}), "no floating-point numbers: visual_projection.weight"),
    "nan": (lambda w: w[KEY][0, 0].fill_(torch.nan), "weights are not finite: visual_projection.weight"),
    "infinite": (lambda w: w["logit_scale"].fill_(torch.inf), "weights are not finite: logit_scale"),
    "shape": (lambda w: w.update({KEY: w[KEY][:, :3].contiguous()}), "another shape"),
}


@pytest.mark.parametrize(("change", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_broken_weights_are_refused(folder, change, message):
    change_weights(folder, change)
    with pytest.raises(BrokenModelError, match=message):
        GMDFModel.from_pretrained(folder)


CONFIGS = [
    {"patch_size": 0},
    {"hidden_size": -4},
    {"num_attention_heads": 0},
    {"num_hidden_layers": 1_000_000},
    {"hidden_size": 10**12},
    {"domains": ["a"]},
    {"quantization_config": {"load_in_8bit": True}},
    {"hidden_act": "zzz"},
    {"dtype": "int8"},
    {"projection_dim": 10**9},
]


@pytest.mark.parametrize("fields", CONFIGS, ids=lambda fields: next(iter(fields)))
def test_impossible_configurations_are_refused_at_once(folder, fields):
    change_config(folder, **fields)
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be used") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value) and time.monotonic() - started < 20


@pytest.mark.parametrize("names", [{0: "fake", 1: "real"}, {0: "cat", 1: "dog"}, {0: "real", 1: "<script>"}])
def test_classes_that_do_not_name_real_and_fake_are_refused(folder, names):
    change_config(folder, id2label=names, label2id={name: number for number, name in names.items()})
    with pytest.raises(UserError, match=r"its classes are .*, expected names of real and fake"):
        load_model(str(folder))


@pytest.mark.parametrize("text", ["[1, 2]", "7", '"x"', "[" * 100_000, "{", ""])
def test_json_that_is_no_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match="cannot be used"):
        load_model(str(folder))


def test_an_index_of_weights_stays_in_its_folder(folder):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {KEY: "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenModelError, match=r"names files elsewhere: \.\./outside"):
        GMDFModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("field", "value"), [("image_std", [0, 1, 1]), ("image_std", -1.0), ("image_mean", [float("nan")])]
)
def test_impossible_processors_are_refused(field, value):
    processor = GMDFImageProcessor.of_size(32)
    setattr(processor, field, value)
    with pytest.raises(BrokenModelError, match=f"the image processor has {field}"):
        check_processor(processor, "name")


@pytest.mark.slow
def test_random_damage_gives_the_right_scores_or_a_refusal(saved, tmp_path):
    """500 random changes of bytes, length, keys, types, shapes and values of the weights."""
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = GMDFModel.from_pretrained(saved)(pixels).logits.detach()
    original, data = load_file(saved / "model.safetensors"), (saved / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    folder, refused = Path(shutil.copytree(saved, tmp_path / "model")), 0
    for seed in range(500):
        rng = random.Random(seed)
        kind, key = rng.randrange(5), rng.choice(sorted(original))
        if kind == 0:  # a byte of the header; a changed byte of a value may be another valid weight
            place = rng.randrange(header)
            (folder / "model.safetensors").write_bytes(data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :])
        elif kind == 1:
            (folder / "model.safetensors").write_bytes(data[: rng.randrange(len(data))])
        else:
            weights = dict(original)
            value = weights.pop(key)
            if kind == 2:
                weights[f"{key}x"] = value
            elif kind == 3:
                weights[key] = torch.full_like(value, rng.choice([torch.nan, torch.inf]))
            else:
                weights[key] = rng.choice([value.to(torch.int8), value.flatten()[:1].clone(), value[None].clone()])
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        try:
            found = load_model(str(folder))(pixels).logits
        except UserError:
            refused += 1
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert refused > 350


def places(fields, path=()):
    """Paths to all values of nested mappings, mappings included."""
    for key, value in fields.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


ODD_VALUES = [
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 0.5, -2.5, float("nan"), float("inf")),
    *("", "x", "a" * 5000, [], [1, 2], {}, {"a": 1}),
]


@pytest.mark.slow
def test_random_settings_give_the_right_score_or_a_refusal(saved, tmp_path):
    """500 random changes of fields of the configuration and of the image processor: never another score."""
    face = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    folder, refused = tmp_path / "model", 0
    expected = load_pipeline(str(saved), detector="none")(face)["score"]
    for seed in range(500):
        rng = random.Random(seed)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        file = folder / rng.choice(["config.json", "config.json", "preprocessor_config.json"])
        fields = json.loads(file.read_text())
        *path, key = rng.choice(list(places(fields)))
        inner = fields
        for each in path:
            inner = inner[each]
        if rng.random() < 0.1:
            del inner[key]
        else:
            inner[key] = rng.choice(ODD_VALUES)
        file.write_text(json.dumps(fields))
        started = time.monotonic()
        try:
            score = load_pipeline(str(folder), detector="none")(face)["score"]
        except (UserError, BrokenModelError):
            refused += 1
        else:
            assert score == pytest.approx(expected, abs=1e-5), (file.name, *path, key, inner.get(key))
        assert time.monotonic() - started < 30
    assert refused > 150


WRONG_PROCESSORS = [
    {"do_rescale": False},
    {"do_normalize": []},
    {"resample": 0},
    {"rescale_factor": 0},
    {"rescale_factor": "x"},
    {"image_std": 2**31},
    {"image_std": 3},
    {"image_mean": [0.5, 0.5]},
    {"image_mean": [10**30] * 3},
    {"size": {"shortest_edge": 1}},
    {"size": [1, 2]},
    {"crop_size": {"height": -1, "width": 32}},
    {"image_processor_type": 1},
    {"auto_map": {"AutoImageProcessor": 5}},
    {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
]


@pytest.mark.parametrize("fields", WRONG_PROCESSORS, ids=lambda fields: "-".join(fields))
def test_processors_that_would_change_the_score_are_refused(folder, fields):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(UserError, match=r"image processor|is damaged|cannot be used"):
        load_pipeline(str(folder), detector="none")


@pytest.mark.parametrize("version", ["4.57.1", "5.16.0", "5.25.0", "6.0.0"])
def test_a_transformers_that_is_too_old_or_too_new_is_one_sentence(version):
    code = f"import transformers\ntransformers.__version__ = '{version}'\nimport gmdf_hf.modeling.configuration_gmdf"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: GM-DF needs transformers>=5.17,<5.25, found {version}: pip install")
