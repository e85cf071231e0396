"""A saved folder must load where this package is not installed (the folder is what `push_to_hub` uploads)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from gmdf_hf import GMDFImageProcessor, GMDFModel
from gmdf_hf.training.checkpoint import save_model
from tests import processes
from tests.conftest import tiny_model
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[2]

# Runs in a process of its own, in which `import gmdf_hf` fails.
ELSEWHERE = """
import json, sys
sys.modules["gmdf_hf"] = None
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

folder, picture, out = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
pixels = torch.load(out + ".pixels", weights_only=True)
scores = {"processor": processor(images=Image.open(picture), return_tensors="pt")["pixel_values"].sum().item()}
for auto in (AutoModelForImageClassification, AutoModel):
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    assert "gmdf_hf" not in type(model).__module__, type(model).__module__
    with torch.no_grad():
        scores[auto.__name__] = model(pixels).logits.double().softmax(-1)[:, 1].tolist()
        scores[auto.__name__ + " known"] = model(pixels, domain_ids=torch.tensor([0, 1, 2, 0, 1])).logits.tolist()
classify = pipeline("image-classification", model=folder, trust_remote_code=True)
scores["pipeline"] = {row["label"]: row["score"] for row in classify(picture)}
model.save_pretrained(folder + "-again")  # whoever loaded it can save it, with its code
again = AutoModel.from_pretrained(folder + "-again", trust_remote_code=True)
assert torch.equal(again(pixels).logits, model(pixels).logits)
json.dump(scores, open(out, "w"))
"""


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "face.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("slim", [False, True])
def test_loads_without_the_package(tmp_path, picture, pixel_values, slim):
    model, processor = tiny_model(dil="cross_attention"), GMDFImageProcessor.of_size(32)
    folder = tmp_path / "model"
    save_model(folder, model, processor, slim=slim)
    torch.save(pixel_values, tmp_path / "out.json.pixels")
    words = ("-P", "-c", ELSEWHERE, folder, picture, tmp_path / "out.json")
    result = processes.run(*words, cwd=tmp_path, warm=processes.LIBRARIES)
    assert result.returncode == 0, result.stderr[-3000:]
    scores = json.loads((tmp_path / "out.json").read_text())
    with torch.no_grad():
        here = model(pixel_values).logits.double().softmax(-1)[:, 1]
        known = model(pixel_values, domain_ids=torch.tensor([0, 1, 2, 0, 1])).logits
        pixels = processor(images=Image.open(picture), return_tensors="pt")["pixel_values"]
        fake = model(pixels).logits.softmax(-1)[0, 1]
    for name in ("AutoModelForImageClassification", "AutoModel"):
        np.testing.assert_allclose(scores[name], here, atol=1e-6)
        np.testing.assert_allclose(scores[f"{name} known"], known, atol=1e-5)
    assert scores["processor"] == pytest.approx(pixels.sum().item(), abs=1e-3)
    assert scores["pipeline"]["fake"] == pytest.approx(fake.item(), abs=1e-6)
    assert scores["pipeline"].keys() == {"real", "fake"}


def test_loads_with_the_package_and_no_trust(tmp_path, picture):
    model, processor = tiny_model(), GMDFImageProcessor.of_size(32)
    save_model(tmp_path / "model", model, processor)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path / "model")) is GMDFModel
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "model")) is GMDFImageProcessor
    classify = pipeline("image-classification", model=str(tmp_path / "model"), trust_remote_code=False)
    scores = {row["label"]: row["score"] for row in classify(str(picture))}
    pixels = processor(images=Image.open(picture), return_tensors="pt")["pixel_values"]
    assert scores["fake"] == pytest.approx(model(pixels).logits.softmax(-1)[0, 1].item(), abs=1e-6)


PUSH = """
from gmdf_hf import GMDFImageProcessor
from tests.conftest import tiny_model
model = tiny_model()
model.push_to_hub("user/detector")
GMDFImageProcessor.of_size(32).push_to_hub("user/detector")
print(model(__import__("torch").ones(1, 3, 32, 32)).logits.tolist())
"""
PULL = """
import sys
sys.modules["gmdf_hf"] = None
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
AutoImageProcessor.from_pretrained("user/detector", trust_remote_code=True)
model = AutoModelForImageClassification.from_pretrained("user/detector", trust_remote_code=True)
print(model(torch.ones(1, 3, 32, 32)).logits.tolist())
"""
PULL_WITH_PACKAGE = """
import torch
from gmdf_hf import GMDFModel
print(GMDFModel.from_pretrained("user/detector")(torch.ones(1, 3, 32, 32)).logits.tolist())
"""


@pytest.mark.slow
def test_pushed_to_the_hub_it_loads_by_name(tmp_path):
    def run(code: str, home: str) -> list:
        environment = os.environ | hub.environment(tmp_path / home) | {"PYTHONPATH": str(ROOT)}
        result = processes.run("-c", code, env=environment, cwd=tmp_path, warm=processes.LIBRARIES)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.strip().splitlines()[-1])

    with HubServer() as hub:
        pushed = run(PUSH, "one")
        for code in (PULL, PULL_WITH_PACKAGE):
            np.testing.assert_allclose(run(code, "two"), pushed, atol=1e-5)


def test_the_folder_holds_what_it_needs_and_no_more(tmp_path):
    save_model(tmp_path / "model", tiny_model(), GMDFImageProcessor.of_size(32), slim=True)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    code = {name for name in names if name.endswith("_gmdf.py")}  # which: test_little_code_travels_with_a_checkpoint
    assert {"configuration_gmdf.py", "modeling_gmdf.py", "image_processing_gmdf.py"} <= code
    assert names == code | {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_saving_replaces_a_whole_folder_or_nothing(tmp_path, monkeypatch):
    folder, processor = tmp_path / "model", GMDFImageProcessor.of_size(32)
    save_model(folder, tiny_model(), processor)
    before = (folder / "model.safetensors").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(processor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(folder, tiny_model(domains=["x", "y"]), processor)
    assert (folder / "model.safetensors").read_bytes() == before
    assert GMDFModel.from_pretrained(folder).config.domains == ["a", "b", "c"]


def test_a_pickled_checkpoint_is_refused(tmp_path):
    model = tiny_model()
    save_model(tmp_path / "model", model, GMDFImageProcessor.of_size(32))
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        GMDFModel.from_pretrained(tmp_path / "model")


def test_a_checkpoint_of_another_kind_is_named(clip_folder):
    with pytest.raises(ValueError, match="expected the model type 'gmdf', found 'clip'"):
        GMDFModel.from_pretrained(clip_folder)
