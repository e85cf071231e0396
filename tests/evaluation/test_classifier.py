"""Detectors of other families: loaded by name, the right way round, with errors of one sentence."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipImageProcessor,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.common.errors import UserError
from gmdf_hf.evaluation.classifier import load_classifier
from gmdf_hf.serving.loading import load_pipeline
from gmdf_hf.training.checkpoint import save_model
from tests import processes
from tests.conftest import tiny_model
from tests.hub_server import HubServer

SIDE = {"height": 32, "width": 32}
NAMES = {"fake first": {0: "Deepfake", 1: "Realism"}, "real first": {0: "human", 1: "AI-generated"}}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def vit(**fields) -> tuple:
    config = ViTConfig(**SMALL, image_size=32, patch_size=8, **fields)
    return ViTForImageClassification(config), ViTImageProcessor(size=SIDE)


def siglip(**fields) -> tuple:
    config = SiglipConfig(vision_config=SMALL | {"image_size": 32, "patch_size": 8}, **fields)
    return SiglipForImageClassification(config), SiglipImageProcessor(size=SIDE)


def swin(**fields) -> tuple:
    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, **fields
    )
    return SwinForImageClassification(config), ViTImageProcessor(size=SIDE)


def convnext(**fields) -> tuple:
    config = ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], **fields)
    return ConvNextForImageClassification(config), ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0)


def timm(**fields) -> tuple:
    pytest.importorskip("timm")
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    pretrained = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 1,
    }
    settings = {
        "architecture": "resnet10t",
        "pretrained_cfg": pretrained,
        "label_names": list(fields["id2label"].values()),
    }
    model = TimmWrapperForImageClassification(TimmWrapperConfig(**settings, num_labels=2, **fields))
    return model, TimmWrapperImageProcessor(pretrained_cfg=pretrained)


def save(folder: Path, family, names: dict[int, str]) -> torch.nn.Module:
    torch.manual_seed(0)
    model, processor = family(id2label=names, label2id={name: number for number, name in names.items()})
    save_model(folder, model.eval(), processor)
    return model


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("family", [vit, siglip, swin, convnext, timm], ids=lambda family: family.__name__)
def test_every_family_is_the_right_way_round(family, tmp_path):
    """The score is the probability of the class whose name says fake, whatever its number; heatmaps follow it."""
    found = {}
    for order, names in NAMES.items():
        model = save(tmp_path / order, family, names)
        detect = load_pipeline(str(tmp_path / order), "none", device="cpu")
        result = detect(picture(), return_heatmap=True)
        pixels = detect.image_processor(images=picture(), return_tensors="pt")["pixel_values"]
        expected = model(pixels).logits.softmax(-1)[0, 0 if order == "fake first" else 1].item()
        assert result["score"] == pytest.approx(expected, abs=1e-5)
        assert result["label"] == ("fake" if expected >= 0.5 else "real") and result["threshold"] == 0.5
        assert result["expert_weights"] == {} == result["faces"][0]["expert_weights"]
        found[order] = (result["score"], result["faces"][0]["heatmap"])
    assert found["fake first"][0] + found["real first"][0] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found["fake first"][1], -found["real first"][1], atol=1e-4)


def test_an_adapter_is_loaded_onto_its_base(tmp_path):
    peft = pytest.importorskip("peft")
    save(tmp_path / "base", vit, NAMES["fake first"])
    for head, names in (("own", None), ("new", {0: "x", 1: "y", 2: "z"})):
        base = tmp_path / "base"
        if names is not None:
            base = tmp_path / "other"
            save(base, vit, names)
        options = {"id2label": NAMES["fake first"], "ignore_mismatched_sizes": True}
        settings = {"target_modules": ["q_proj", "v_proj", "query", "value"], "init_lora_weights": False}
        start = ViTForImageClassification.from_pretrained(base, **options)
        adapted = peft.get_peft_model(start, peft.LoraConfig(modules_to_save=["classifier"], **settings)).eval()
        adapted.save_pretrained(tmp_path / head)
        if names is not None:
            with pytest.raises(UserError, match="has 3 classes; an adapter with a head of its own needs"):
                load_classifier(str(tmp_path / head))
            adapted.base_model.config.save_pretrained(tmp_path / head)
        found = load_classifier(str(tmp_path / head))
        pixels = found.processor(images=picture(), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found.model(pixels).logits, adapted(pixels).logits)
        plain = ViTForImageClassification.from_pretrained(base, **options).eval()
        assert not torch.allclose(found.model(pixels).logits, plain(pixels).logits, atol=1e-4)
        assert found.fake == 0
    (tmp_path / "own" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no adapter_model.safetensors; pickled weights are not read"):
        load_classifier(str(tmp_path / "own"))


@pytest.mark.parametrize(
    ("names", "fake_label", "words"),
    [
        ({0: "cat", 1: "dog"}, None, "do not tell real from fake; name the fake one with `fake_label`"),
        ({0: "cat", 1: "dog"}, "bird", "The fake class must be one of the model's"),
        ({0: "real", 1: "fake", 2: "cat"}, None, "needs two classes, real and fake, found 3"),
    ],
)
def test_what_is_no_detector_is_refused(tmp_path, names, fake_label, words):
    save(tmp_path / "model", vit, names)
    with pytest.raises(UserError, match=words):
        load_classifier(str(tmp_path / "model"), fake_label=fake_label)
    if len(names) == 2:
        assert load_classifier(str(tmp_path / "model"), fake_label="cat").fake == 0


def test_damaged_pickled_and_foreign_code_are_refused(tmp_path):
    save(tmp_path / "model", vit, NAMES["real first"])
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be used"):
        load_classifier(str(tmp_path / "model"))
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {
        "model_type": "unheard_of",
        "auto_map": {"AutoConfig": "code.C", "AutoModelForImageClassification": "code.M"},
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="needs code of its own repository, which is not run unasked"):
        load_classifier(str(tmp_path / "model"))
    save_model(tmp_path / "gmdf", tiny_model(), GMDFImageProcessor.of_size(32))
    config = json.loads((tmp_path / "gmdf" / "config.json").read_text())
    names = {"id2label": {0: "fake", 1: "real"}, "label2id": {"fake": 0, "real": 1}}
    (tmp_path / "gmdf" / "config.json").write_text(json.dumps(config | names))
    with pytest.raises(UserError, match="its classes are fake, real"):  # a GM-DF always gives real first
        load_classifier(str(tmp_path / "gmdf"))


HUB = """
import sys
from gmdf_hf.common.errors import exit_on_error
from gmdf_hf.evaluation.classifier import load_classifier
with exit_on_error("test"):
    print(load_classifier(sys.argv[1]).model.config.id2label)
"""


def test_a_private_model_of_the_hub_needs_a_token(tmp_path):
    save(tmp_path / "model", vit, NAMES["fake first"])
    with HubServer(token="hf_test") as hub:
        environment = os.environ | hub.environment(tmp_path / "home")
        push = (
            "import sys; from huggingface_hub import HfApi; a = HfApi(); a.create_repo('me/vit', private=True);"
            "a.upload_folder(repo_id='me/vit', folder_path=sys.argv[1]); a.create_tag('me/vit', tag='v1')"
        )
        processes.run("-c", push, tmp_path / "model", env=environment, check=True, warm=processes.LIBRARIES)
        with_token = processes.run("-c", HUB, "me/vit@v1", env=environment, warm=processes.LIBRARIES)
        assert "Deepfake" in with_token.stdout, with_token.stderr[-2000:]
        environment = environment | {"HF_TOKEN": "", "HF_HOME": str(tmp_path / "empty")}
        without = processes.run("-c", HUB, "me/vit@v1", env=environment, warm=processes.LIBRARIES)
        assert without.returncode == 1 and "Traceback" not in without.stderr
        message, hint = without.stderr.strip().splitlines()[-2:]
        assert "The model 'me/vit@v1' does not exist on the hub, or is private." in message
        assert "hf auth login" in hint
