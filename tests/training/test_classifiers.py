"""Image classifiers other than CLIP in the whole training loop, with tiny models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTForImageClassification,
)

from gmdf_hf.common.errors import UserError
from gmdf_hf.data import frames
from gmdf_hf.scripts import evaluate, meta_train
from gmdf_hf.serving.hub import published_files
from gmdf_hf.training.classifiers import (
    head_parameters,
    image_side,
    load_classifier,
    resized,
)
from gmdf_hf.training.methods.merged import Merged
from gmdf_hf.training.training_state import last_state
from tests.common.test_processes import ROOT, start
from tests.training.tiny_backbones import BACKBONES, miniature, save_backbone

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_classifier_has_a_new_head_and_all_else_is_the_checkpoints(kind, tmp_path):
    before = AutoModelForImageClassification.from_pretrained(save_backbone(kind, tmp_path)).state_dict()
    model, processor = load_classifier(str(tmp_path), ["x", "y"])
    assert model.config.id2label == {0: "real", 1: "fake"} and model.config.domains == ["x", "y"]
    assert processor.to_dict() == AutoImageProcessor.from_pretrained(tmp_path).to_dict()
    assert image_side(processor) == 32
    head = head_parameters(model)
    assert {name.split(".")[0] for name in head} == {"classifier"}
    for name, tensor in model.state_dict().items():
        same = before[name].shape == tensor.shape and torch.equal(before[name], tensor)
        assert same is (name not in head), name


def test_a_run_is_scored_saved_described_and_found_again(tmp_path):
    drawn = {name: {"path": f"drawn:{name}", "max_videos": 4} for name in ("swap", "reenact")}
    unseen = {"compress": {"path": "drawn:compress", "max_videos": 4}}
    config = miniature(tmp_path, "vit", source_domains=drawn, unseen_domains=unseen, method="balanced_erm")
    results = meta_train.main(config)
    run = tmp_path / "run"
    assert results["steps"] == 4 and list(results["domains"]) == ["swap", "reenact", "compress"]
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert "classification" in lines[0] and "validation_auc" in lines[1] and "alpha" not in lines[1]
    model = AutoModelForImageClassification.from_pretrained(run / "model")
    assert type(model) is ViTForImageClassification
    assert model.config.threshold == pytest.approx(min(results["threshold"], 1))

    asked = evaluate.Evaluation(
        model=str(run / "model"),
        domains={**config.source_domains, **config.unseen_domains},
        output_dir=tmp_path / "scores",
        batch_size=2 * config.batch_size,
        replicates=10,
    )
    found = evaluate.main(asked)
    assert found["threshold"] == model.config.threshold and found["threshold_source"].startswith("the model's own")
    assert found["source_domains"] == ["swap", "reenact"] and found["unseen_domains"] == ["compress"]
    keys = ["domain", "video_id", "frame", "label"]
    ours, again = (
        pd.read_parquet(folder / "scores.parquet").sort_values(keys, ignore_index=True)
        for folder in (run, tmp_path / "scores")
    )
    assert ours[keys].equals(again[keys])
    np.testing.assert_allclose(ours["score"], again["score"], rtol=1e-6)

    card = (run / "model" / "README.md").read_text()
    assert "# vit on swap + reenact" in card and "Trained on drawings" in card
    assert "`vit` (model type `vit`) with a new head" in card and "32 pixels a side" in card
    for word in ("meta-trained", "gmdf predict", "GMDFModel", 'deepfake-detection"', "gm-df", "{{", "{%"):
        assert word not in card, word
    files = published_files(run, "user/name")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} < set(files)
    assert not any(name.endswith(".py") for name in files)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("convnext", "direct_merge"), ("resnet", "rfm"), ("vit", "ltw"), ("vit", "dcl"), ("vit", "mldg")],
)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(kind, method, tmp_path):
    meta_train.main(miniature(tmp_path, kind, lr_scheduler="cosine", method=method))
    straight, stopped = tmp_path / "run", tmp_path / "stopped"
    half = last_state(straight / "checkpoints").with_name("step-00000002")
    shutil.copytree(half, stopped / "checkpoints" / half.name)
    shutil.copy(straight / "train_config.yaml", stopped)
    AcceleratorState._reset_state(reset_partial_state=True)
    config = miniature(tmp_path, kind, lr_scheduler="cosine", method=method, output_dir=stopped, resume=True)
    assert meta_train.main(config)["steps"] == 4
    for name in ("history.jsonl", "model/model.safetensors"):
        assert (straight / name).read_bytes() == (stopped / name).read_bytes(), name
    # The file also names the model's folder.
    assert pd.read_parquet(straight / "scores.parquet").equals(pd.read_parquet(stopped / "scores.parquet"))
    states = [last_state(run / "checkpoints") / "state.safetensors" for run in (straight, stopped)]
    assert states[0].read_bytes() == states[1].read_bytes()
    moved = [name for name in load_file(states[0]) if name.endswith("running_mean")]
    assert bool(moved) is (kind == "resnet")
    for name in moved:
        early, late = load_file(half / "state.safetensors")[name], load_file(states[0])[name]
        assert early.any() and not torch.equal(early, late), name


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_linear_probe_changes_its_head_alone(kind, tmp_path):
    config = miniature(tmp_path, kind, method="linear_probe")
    meta_train.main(config)
    folders = Path(config.backbone), tmp_path / "run" / "model"
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    for name, tensor in after.items():  # running statistics too
        assert name.startswith("classifier.") or torch.equal(tensor, before[name]), name
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert history[0]["gradient_norm"] > 0
    state = load_file(last_state(tmp_path / "run" / "checkpoints") / "state.safetensors")
    # The optimizer has only the two tensors of the head.
    assert {name.split(".")[1] for name in state if name.startswith("optimizer.")} == {"0", "1"}


def test_a_convolutional_backbone_takes_another_image_size(tmp_path):
    meta_train.main(miniature(tmp_path, "convnext", image_size=48, max_steps=1))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert image_side(processor) == 48
    assert "48 pixels a side" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert image_side(resized(BACKBONES["vit"][2], 24)) == 24


def test_a_network_with_batch_normalisation_has_its_channels_last(tmp_path, monkeypatch):
    layouts, step = [], Merged.step

    def seen(method, model, *arguments):
        kernels = [weight for weight in model.parameters() if weight.dim() == 4 and min(weight.shape[1:]) > 1]
        layouts.append({kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels})
        return step(method, model, *arguments)

    monkeypatch.setattr(Merged, "step", seen)
    meta_train.main(miniature(tmp_path, "resnet", max_steps=1))
    assert layouts == [{True}]


def test_what_one_broken_image_did_to_the_running_statistics_is_undone(tmp_path, monkeypatch):
    read_frame, uses = frames.read_frame, []

    def plant(frame, *arguments):
        read = read_frame(frame, *arguments)
        if "y, video train-2-1" in str(frame):
            uses.append(frame)
            if len(uses) > 1:
                read["pixel_values"][0, 3, 4] = torch.inf
        return read

    monkeypatch.setattr(frames, "read_frame", plant)
    with pytest.raises(UserError, match=r"Iteration \d+ gave .*nan.*of y, video train-2-1, frame \d are not finite"):
        meta_train.main(miniature(tmp_path, "resnet", steps_per_epoch=20, save_steps=None))
    state = load_file(last_state(tmp_path / "run" / "checkpoints") / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())
    counts = {int(tensor) for name, tensor in state.items() if name.endswith("num_batches_tracked")}
    assert counts == {json.loads((tmp_path / "run" / "failure.json").read_text())["step"] - 1}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_two_processes_train_as_one(kind, tmp_path):
    steps = 1 if kind == "resnet" else 4
    for processes, name in ((1, "one"), (2, "two")):
        fields = {
            "batch_size": 8 // processes,
            "max_steps": steps,
            "learning_rate": 1e-5,
            "output_dir": tmp_path / name,
        }
        config = miniature(tmp_path, kind, method="balanced_erm", save_steps=None, **fields)
        if processes == 1:
            meta_train.main(config)
        else:
            recipe = tmp_path / f"{name}.yaml"
            recipe.write_text(json.dumps(config.model_dump(mode="json")))
            start(ROOT / "scripts" / "meta_train.py", "--recipe", recipe)
    one, two = (load_file(last_state(tmp_path / name / "checkpoints") / "state.safetensors") for name in ("one", "two"))
    if kind == "vit":
        for name, tensor in one.items():
            if name.startswith("model.") and "attention.key.bias" not in name:  # changes only by rounding
                torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)
    else:
        # Each process normalises its half of the batch; in the first layer their mean equals the whole batch's mean.
        name = "model.resnet.embedder.embedder.normalization.running_mean"
        assert one[name].any()
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("kind", "method"), [("vit", "gmdf"), ("resnet", "gmdf"), ("vit", "mldg")])
def test_gmdf_trains_on_any_backbone_with_its_own_pixels(kind, method, tmp_path):
    model = {"codebook_size": 16, "expert_bottleneck_size": 4, "prompt_size": 8, "projection_dim": 8}
    fields = {"model": model, "image_size": 32, "image_tokenizer_steps": 2}
    results = meta_train.main(miniature(tmp_path, kind, method=method, **fields))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "model")
    own = AutoImageProcessor.from_pretrained(tmp_path / kind)
    assert results["steps"] == 4
    assert loaded.config.model_type == "gmdf" and loaded.config.vision_config.model_type == kind
    assert loaded.config.slim and not hasattr(loaded, "mim_head")
    assert list(processor.image_mean) == list(own.image_mean) and image_side(processor) == 32
    moved = any(parameter.any() for name, parameter in loaded.named_parameters() if name.endswith(".alpha"))
    assert moved is (method == "gmdf")


def test_a_baseline_can_start_where_gmdf_starts(tmp_path):
    meta_train.main(miniature(tmp_path, "vit", baseline_model="gmdf", model={"projection_dim": 8}))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model")
    assert loaded.config.model_type == "gmdf"
    assert not any(parameter.any() for name, parameter in loaded.named_parameters() if name.endswith(".alpha"))


def test_a_method_that_needs_a_trained_gmdf_is_refused_before_anything_is_touched(tmp_path):
    config = miniature(tmp_path, "vit", method="add_domain", source_domains={"x": "/no/such/x"})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"model type 'vit', which trains with gmdf, .*; found the method 'add_domain'"):
        meta_train.main(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["results.json"]


def test_parts_of_a_tower_are_clips(tmp_path):
    config = miniature(tmp_path, "vit", method="direct_merge", train_tower="layer_norms")
    with pytest.raises(UserError, match="model type 'vit', and 'direct_merge' trains its own classifier with `all`"):
        meta_train.main(config)
