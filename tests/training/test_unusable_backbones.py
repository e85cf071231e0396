"""Checkpoints and settings that a run cannot start from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertConfig,
    ViTImageProcessor,
)

from gmdf_hf.common.errors import UserError
from gmdf_hf.scripts import meta_train
from gmdf_hf.training.classifiers import (
    CLASSES,
    head_parameters,
    load_classifier,
    missing_packages,
)
from tests.training.tiny_backbones import miniature, save_backbone

pytestmark = pytest.mark.usefixtures("own_cache")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def incomplete(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("vit.layernorm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_running_statistics_of_an_old_checkpoint_need_no_count(tmp_path):
    file = Path(save_backbone("resnet", tmp_path)) / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "num_batches" not in name}
    save_file(tensors, file, {"format": "pt"})
    load_classifier(str(tmp_path), ["x", "y"])
    tensors.pop("resnet.embedder.embedder.normalization.running_var")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"it lacks weights, .*: resnet.embedder.embedder.normalization.running_var"):
        load_classifier(str(tmp_path), ["x", "y"])


def of_another_kind(folder: Path) -> None:
    BertConfig().save_pretrained(folder)


def with_code_of_its_own(folder: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('this code ran')")


def without_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def oblong(folder: Path) -> None:
    ViTImageProcessor(size={"height": 32, "width": 24}).save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pickled, "model.safetensors"),
        (incomplete, "it lacks weights, or has them in another shape: vit.layernorm.weight"),
        (of_another_kind, "no image classifier of the model type 'bert'"),
        (with_code_of_its_own, "trust_remote_code"),
        (without_processor, "mage processor"),
        (oblong, "makes no square images"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_sentence(change, message, tmp_path):
    change(Path(save_backbone("vit", tmp_path)))
    with pytest.raises(UserError, match=f"The backbone .* cannot be used: .*{message}") as caught:
        load_classifier(str(tmp_path), ["x", "y"])
    assert "\n" not in str(caught.value)


def test_settings_that_a_backbone_cannot_have_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"takes no images of 64 pixels a side: .*doesn't match model \(32\*32\)"):
        load_classifier(save_backbone("vit", tmp_path / "vit"), ["x", "y"], image_size=64)
    with pytest.raises(UserError, match="does not support Flash Attention 2"):
        load_classifier(save_backbone("resnet", tmp_path / "resnet"), ["x"], attn_implementation="flash_attention_2")
    with pytest.raises(UserError, match="gradient_checkpointing: ResNetForImageClassification does not support"):
        meta_train.main(miniature(tmp_path, "resnet", gradient_checkpointing=True))
    with pytest.raises(UserError, match="The backbone '/no/such/folder' cannot be used"):
        load_classifier("/no/such/folder", ["x", "y"])
    with pytest.raises(ValueError, match="Identity has no parameters named classifier"):
        head_parameters(torch.nn.Identity())


def test_timms_own_classes_give_way_to_ours(tmp_path, monkeypatch):
    """A timm checkpoint on the hub has no model type and its own number of classes."""
    settings = {"architecture": "legacy_xception", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 299, 299]}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = AutoConfig.from_pretrained(tmp_path, **CLASSES)
    assert config.id2label == {0: "real", 1: "fake"}
    config.domains, config.threshold = ["x", "y"], 0.25
    config.save_pretrained(tmp_path / "saved")
    again = AutoConfig.from_pretrained(tmp_path / "saved")
    assert (again.id2label, again.domains, again.threshold) == ({0: "real", 1: "fake"}, ["x", "y"], 0.25)
    monkeypatch.setattr("gmdf_hf.training.classifiers.find_spec", lambda name: None if name == "torchvision" else name)
    assert missing_packages("timm/legacy_xception.tf_in1k") == ["torchvision"]
    assert missing_packages("google/vit-base-patch16-224") == []
