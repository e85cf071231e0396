import json

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.common.errors import UserError
from gmdf_hf.data import frames
from gmdf_hf.data.dataset import load_domain
from gmdf_hf.data.episodes import Episode
from gmdf_hf.data.frames import FrameReader
from gmdf_hf.scripts import meta_train
from gmdf_hf.training.config import TrainConfig
from gmdf_hf.training.diagnostics import broken_images, expert_state, idle_warning, plot_history
from gmdf_hf.training.training_state import last_state
from tests.conftest import tiny_model
from tests.domains import write_domain

pytestmark = pytest.mark.usefixtures("own_cache")


def config(tmp_path, **fields) -> TrainConfig:
    sources = {name: str(tmp_path / name) for name in "xy"}
    settings = {
        "source_domains": sources,
        "backbone": "tiny_clip",
        "model": {"codebook_size": 16, "expert_bottleneck_size": 4, "prompt_size": 4},
        "epochs": 4,
        "batch_size": 4,
        "image_tokenizer_steps": 2,
        "output_dir": tmp_path / "run",
    }
    return TrainConfig(**settings | fields)


def test_a_planted_nan_stops_the_run_with_the_videos_name(tmp_path, monkeypatch):
    for seed, name in enumerate("xy"):
        write_domain(tmp_path / name, seed)
    read_frame, first_uses = frames.read_frame, []

    def plant(frame, *arguments):
        item = read_frame(frame, *arguments)
        if "y, video train-2-1" in str(frame):
            first_uses.append(frame)
            if len(first_uses) > 3:  # after the first epochs, so that a model has been saved
                item["pixel_values"][0, 3, 4] = torch.nan
        return item

    monkeypatch.setattr(frames, "read_frame", plant)
    with pytest.raises(UserError, match=r"Iteration \d+ gave .*nan.*y, video train-2-1, frame \d") as caught:
        meta_train.main(config(tmp_path, epochs=6, save_steps=1000))
    run = tmp_path / "run"
    record = json.loads((run / "failure.json").read_text())
    assert [name.split(", frame")[0] for name in record["broken"]] == ["y, video train-2-1"]
    assert len(record["images"]) == 8 and sorted(record["domains"]) == ["x", "y"]
    assert "nan" in record["values"].values()
    assert f"Iteration {record['step']} " in str(caught.value)
    # The state before that iteration is saved, complete and finite, and the run resumes from it.
    checkpoint = last_state(run / "checkpoints")
    assert checkpoint.name == f"step-{record['step'] - 1:08d}"
    monkeypatch.setattr(frames, "read_frame", read_frame)
    AcceleratorState._reset_state(reset_partial_state=True)
    results = meta_train.main(config(tmp_path, epochs=6, save_steps=1000, resume=True))
    assert results["steps"] > record["step"]
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == results["steps"]


def test_an_image_with_an_infinite_loss_is_found():
    model = tiny_model()
    images = torch.randn(6, 3, 32, 32)
    episode = Episode.of(images, torch.tensor([0, 1] * 3), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert broken_images(model, episode, "abcdef") == []
    images[4] *= 1e38  # finite pixels
    assert broken_images(model, episode, "abcdef") == ["e"]


@pytest.fixture
def frames_of_two_domains(tmp_path):
    for seed, name in enumerate("xy"):
        write_domain(tmp_path / name, seed)
    domains = [load_domain(name, "validation", str(tmp_path / name)) for name in "xy"]
    return FrameReader(domains, GMDFImageProcessor.of_size(32))


def test_gains_and_use_of_experts(frames_of_two_domains):
    model = tiny_model()
    state = expert_state(model, frames_of_two_domains)
    assert list(state["alpha"]) == ["a", "b", "c"]
    assert state["alpha"]["b"] == [layer.experts.alpha[1].item() for layer in model.vision_model.encoder.layers]
    assert list(state["expert_use"]) == ["x", "y"]
    assert sum(state["expert_use"]["x"].values()) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        for layer in model.vision_model.encoder.layers:
            layer.experts.alpha[:2] = 0
    assert expert_state(model, frames_of_two_domains)["expert_use"]["x"] == {"a": 0, "b": 0, "c": pytest.approx(1)}


@pytest.mark.parametrize("part", ["experts", "text"])
def test_effect_is_the_spread_of_what_a_part_changes(frames_of_two_domains, part):
    model, twin = tiny_model(), tiny_model()
    silent = [twin.text_affine] if part == "text" else [layer.experts for layer in twin.vision_model.encoder.layers]
    with torch.no_grad():
        for module in silent:
            for parameter in module.parameters():
                parameter.zero_()
    images = torch.stack([frames_of_two_domains[n, row]["pixel_values"] for n in (0, 1) for row in range(16)])
    domain_ids = torch.tensor([0] * 16 + [1] * 16)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = expert_state(model, frames_of_two_domains)["expert_effect"][part]
    for route, ids in (("known", domain_ids), ("unknown", None)):
        with torch.no_grad():
            margin, without = (m(images, domain_ids=ids).logits.diff(dim=1) for m in (model, twin))
        assert found[route] == pytest.approx(float((margin - without).std() / margin.std()), rel=1e-3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name  # restored


def test_idle_experts_are_said_and_active_ones_are_not():
    idle = {"experts": {"known": 0.5, "unknown": 0.031}, "text": {"known": 0.2, "unknown": 0.2}}
    assert "50.0 %" in idle_warning(idle) and "3.1 %" in idle_warning(idle)
    assert idle_warning(idle | {"experts": {"known": 0.5, "unknown": 0.1}}) is None


def test_curves_are_drawn(tmp_path):
    records = [
        {"step": 10, "epoch": 0, "source": 0.7, "classification": 0.6, "gradient_norm": 1.0},
        {"step": 10, "epoch": 0, "validation_auc": 0.5, "alpha": {"a": [0.1, -0.1], "b": [0.0, 0.2]}},
        {"step": 20, "epoch": 1, "source": 0.5, "classification": 0.4, "gradient_norm": 0.5},
    ]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_history(tmp_path / "history.jsonl", tmp_path / "history.png")
    assert Image.open(tmp_path / "history.png").size == (1100, 770)
