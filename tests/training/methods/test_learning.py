"""What every method of today does: learns 32 faces, trains a run, and leaves a model that opens like any other."""

import json
import os

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification

from gmdf_hf import TINY_CLIP, GMDFImageProcessor, GMDFModel
from gmdf_hf.data.drawn.domains import draw_domain
from gmdf_hf.data.episodes import Episode
from gmdf_hf.scripts import meta_train
from gmdf_hf.training.config import TrainConfig
from gmdf_hf.training.methods import make_method
from tests import processes
from tests.domains import write_domain
from tests.training.tiny_backbones import save_backbone

pytestmark = pytest.mark.usefixtures("own_cache")

LOSSES = {
    "gend": {"classification", "alignment", "uniformity"},
    "effort": {"classification", "orthogonality", "norm_change"},
    "lora": {"classification"},
    "dcl": {"classification", "inter", "intra"},
    "ltw": {"source", "compact", "classification"},
}


@pytest.fixture(scope="module")
def faces() -> Episode:
    """Sixteen real and sixteen forged drawn faces, of two domains."""
    pictures, labels = [], []
    for domain in ("swap", "reenact"):
        rows = list(draw_domain(domain, "train", num_videos=16, frames_per_video=1))
        pictures += [row["image"] for row in rows]
        labels += [row["label"] for row in rows]
    processor = GMDFImageProcessor.of_size(64)
    return Episode.of(
        processor(images=pictures, return_tensors="pt")["pixel_values"],
        torch.tensor(labels),
        torch.tensor([0] * 16 + [1] * 16),
    )


def config_of(method: str, backbone: str, tmp_path, **fields) -> TrainConfig:
    for seed, domain in enumerate("xy"):
        if not (tmp_path / domain).exists():
            write_domain(tmp_path / domain, seed)
    return TrainConfig(
        source_domains={domain: str(tmp_path / domain) for domain in "xy"},
        backbone=backbone,
        method=method,
        epochs=1,
        max_steps=2,
        batch_size=4,
        learning_rate=1e-2,
        **{"output_dir": tmp_path / "run"} | fields,
    )


@pytest.mark.slow
# DCL sees a strong view of each face, never the face: it takes 275 steps of 1e-3, which are two minutes.
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "dcl"])
def test_thirty_two_faces_are_learned_by_heart(name, faces, tmp_path):
    torch.manual_seed(0)
    assert len(faces.labels) == 2 * faces.labels.sum() == 32
    model = GMDFModel.from_clip(TINY_CLIP, domains=["a", "b"]).train()
    method = make_method(config_of(name, "tiny_clip", tmp_path), ["a", "b"], None, 1)
    step_size = 3e-4 if name == "ltw" else 3e-3  # it trains the whole tower, the others few weights
    optimizer = torch.optim.Adam(method.prepare(model), lr=step_size)
    for step in range(100):
        losses = method.step(model, faces, Accelerator())
        assert set(losses) == LOSSES[name] and all(loss.isfinite() for loss in losses.values())
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 4:
            with torch.no_grad():
                if torch.equal(model(faces.pixel_values).logits.argmax(1), faces.labels):
                    return
    pytest.fail(f"{name} did not learn 32 faces in 100 steps: {losses}")


@pytest.mark.parametrize("backbone", [pytest.param("tiny_clip", marks=pytest.mark.slow), "vit"])
def test_runs_leave_models_that_open_without_the_package(backbone, tmp_path):
    folder = backbone if backbone == "tiny_clip" else save_backbone(backbone, tmp_path / backbone)
    pixels = torch.randn(2, 3, 64, 64) if backbone == "tiny_clip" else torch.randn(2, 3, 32, 32)
    expected = {}
    for name, losses in LOSSES.items():
        run = tmp_path / name
        results = meta_train.main(config_of(name, folder, tmp_path, output_dir=run))
        assert results["steps"] == 2 and set(results["domains"]) == {"x", "y"}
        logged = json.loads((run / "history.jsonl").read_text().splitlines()[0])
        assert losses <= logged.keys()
        with torch.no_grad():
            model = AutoModelForImageClassification.from_pretrained(run / "model").eval()
            expected[name] = model(pixel_values=pixels).logits
    save_file({**expected, "pixels": pixels}, tmp_path / "expected.safetensors")
    code = """
import sys
sys.modules["gmdf_hf"] = sys.modules["peft"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification
expected = load_file("expected.safetensors")
pixels = expected.pop("pixels")
for name, logits in expected.items():
    model = AutoModelForImageClassification.from_pretrained(f"./{name}/model", trust_remote_code=True).eval()
    torch.testing.assert_close(model(pixels).logits.detach(), logits)
"""
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = processes.run("-c", code, cwd=tmp_path, env=environment, warm=processes.LIBRARIES)
    assert result.returncode == 0, result.stderr
