"""GM-DF with any image backbone: initial equality with the backbone, training, loading and export."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    CLIPModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import is_timm_available

from gmdf_hf import GMDFConfig, GMDFImageProcessor, GMDFModel
from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling.backbones_gmdf import BackboneExperts
from gmdf_hf.modeling.sites_gmdf import backbone_inputs
from gmdf_hf.serving.heatmaps import evidence_map
from gmdf_hf.training.diagnostics import effects
from gmdf_hf.training.inner_optimizer import ExpertAdam
from gmdf_hf.training.methods.gmdf import GMDF, MetaOptions
from tests.conftest import TEXT, VISION

BLOCKS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP_TEXT = BLOCKS | {"vocab_size": 50, "max_position_embeddings": 8, "projection_size": 32}
NAFLEX = {name: value for name, value in BLOCKS.items() if name != "image_size"} | {"num_patches": 16}
CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
TIMM = {
    "model_type": "timm_wrapper",
    "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3},
}
BACKBONES: dict[str, dict[str, Any]] = {
    "clip": {"model_type": "clip_vision_model", **VISION},
    "siglip": {"model_type": "siglip_vision_model", **BLOCKS},
    "siglip2": {"model_type": "siglip2_vision_model", **NAFLEX},
    "dinov2": {"model_type": "dinov2", **BLOCKS},
    "dinov3": {"model_type": "dinov3_vit", **BLOCKS},
    "vit": {"model_type": "vit", **BLOCKS},
    "convnextv2": {"model_type": "convnextv2", **CONVNEXT},
    "timm efficientnet": {**TIMM, "architecture": "efficientnet_lite0"},
    "timm vit": {**TIMM, "architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 64, "depth": 2}},
}
TEXTS = {
    "clip": TEXT,
    "siglip": {"model_type": "siglip_text_model", **SIGLIP_TEXT},
    "siglip2": {"model_type": "siglip2_text_model", **SIGLIP_TEXT},
}
ROUTES: list[dict[str, Any]] = [{}, {"domain_ids": torch.tensor([0, 1, 2, 1])}, {"active_experts": [0, 2]}]


@cache
def timm_works() -> bool:
    """Whether timm can be imported; it needs torchvision, whose wheel fails to import with a CPU-only torch."""
    if not is_timm_available():
        return False
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def config_of(name: str, **fields: Any) -> GMDFConfig:
    if name.startswith("timm") and not timm_works():
        pytest.skip("timm cannot be imported here")
    size = 32 if name.startswith("siglip") else 16
    settings = {"projection_dim": size, "expert_bottleneck_size": 8, "prompt_size": 8, "codebook_size": 20}
    return GMDFConfig(
        vision_config=BACKBONES[name], text_config=TEXTS.get(name), domains=["a", "b", "c"], **settings | fields
    )


def fresh_model(name: str, **fields: Any) -> GMDFModel:
    torch.manual_seed(0)
    model = GMDFModel(config_of(name, **fields)).eval()
    for module in model.vision_model.modules():
        # TimmWrapper's initial weights are so small that batch normalisation in evaluation mode removes the image
        # signal.
        if name.startswith("timm") and isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return model


def trained_model(name: str, **fields: Any) -> GMDFModel:
    """A model whose experts have non-zero effect."""
    model = fresh_model(name, **fields)
    with torch.no_grad():
        for parameter in model.expert_parameters().values():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def images_for(model: GMDFModel, count: int = 4) -> torch.Tensor:
    side = model.config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "clip"])
@torch.no_grad()
def test_a_fresh_model_has_the_features_of_the_bare_backbone_on_every_route(name):
    model = fresh_model(name)
    pixels = images_for(model)
    backbone = AutoModel.from_config(model.config.vision_config).eval()
    backbone.load_state_dict(model.vision_model.state_dict())
    bare = backbone(**backbone_inputs(backbone, pixels)).pooler_output
    for route in ROUTES:
        assert torch.equal(model.encode_images(pixels, **route)[0].pooler_output, bare)
    for parameter in model.expert_parameters().values():
        parameter.copy_(torch.randn_like(parameter))
    for route in ROUTES:
        assert not torch.allclose(model.encode_images(pixels, **route)[0].pooler_output, bare)
    # Outside of the model's own forward pass the backbone runs without experts.
    assert torch.equal(model.vision_model(**backbone_inputs(backbone, pixels)).pooler_output, bare)


@pytest.mark.parametrize(("config_class", "model_class"), [(SiglipConfig, SiglipModel), (Siglip2Config, Siglip2Model)])
@torch.no_grad()
def test_a_fresh_model_is_siglip_with_text_tower_and_bias(config_class, model_class, tmp_path):
    name = config_class.model_type
    text = {key: value for key, value in TEXTS[name].items() if key != "model_type"}
    vision = {key: value for key, value in BACKBONES[name].items() if key != "model_type"}
    siglip = model_class(config_class(text_config=text, vision_config=vision)).eval()
    siglip.logit_bias.fill_(-3.0)
    siglip.save_pretrained(tmp_path)
    prompts = [[3, 4, 5, 1, 1, 1, 1, 1], [3, 4, 6, 1, 1, 1, 1, 1]]
    model = GMDFModel.from_backbone(tmp_path, domains=["a", "b"], prompt_ids=prompts)
    pixels = images_for(model)
    expected = siglip(input_ids=torch.tensor(prompts), **backbone_inputs(siglip.vision_model, pixels))
    torch.testing.assert_close(model(pixels).logits, expected.logits_per_image)
    torch.testing.assert_close(model(pixels).image_embeds, expected.image_embeds)


@pytest.mark.parametrize("name", ["dinov2", "vit", "convnextv2", "timm efficientnet"])
@torch.no_grad()
def test_a_detector_starts_from_a_saved_backbone(name, tmp_path):
    config = config_of(name).vision_config
    backbone = AutoModel.from_config(config).eval()
    backbone.save_pretrained(tmp_path)
    model = GMDFModel.from_backbone(tmp_path, domains=["a", "b"], image_size=64)
    pixels = images_for(model)
    assert model.config.image_size == 64
    inputs = {"pixel_values": pixels} | ({"interpolate_pos_encoding": True} if name == "vit" else {})
    assert torch.equal(model.encode_images(pixels)[0].pooler_output, backbone(**inputs).pooler_output)


@torch.no_grad()
def test_a_checkpoint_without_a_pooler_gives_its_class_token(tmp_path):
    classifier = AutoModelForImageClassification.from_config(CONFIG_MAPPING["vit"](**BLOCKS)).eval()
    classifier.save_pretrained(tmp_path / "vit")
    model = GMDFModel.from_backbone(tmp_path / "vit", domains=["a", "b"])
    pixels = images_for(model)
    tokens = classifier(pixels, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(model.encode_images(pixels)[0].pooler_output, classifier.vit.layernorm(tokens)[:, 0])
    model.save_pretrained(tmp_path / "detector")
    torch.testing.assert_close(GMDFModel.from_pretrained(tmp_path / "detector")(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize(
    "name", [name if name == "clip" else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
)
def test_experts_learn_in_a_miniature_run(name):
    """The classes differ in the direction of stripes, and the directions differ between domains."""
    model = fresh_model(name, expert_scale=64.0)
    side, count = model.config.image_size, 8
    generator = torch.Generator().manual_seed(0)
    stripes = torch.linspace(0, 12, side).sin().expand(3, side, side)
    patterns = [stripes, stripes.transpose(1, 2), (stripes + stripes.transpose(1, 2)) / 2]
    labels = torch.tensor([0, 1] * (count // 2)).repeat(3)
    domain_ids = torch.arange(3).repeat_interleave(count)
    method = GMDF(ExpertAdam(3e-3, 1.0), MetaOptions(source_weight=1.0, alignment_weight=0.0, mim_weight=0.0), count)
    parameters = method.prepare(model)
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    for _ in range(15):
        pixels = 0.5 * torch.randn(3 * count, 3, side, side, generator=generator)
        pixels += torch.stack([label * patterns[domain] for label, domain in zip(labels, domain_ids, strict=True)])
        optimizer.zero_grad()
        method.step(model.train(), Episode.of(pixels, labels, domain_ids), Accelerator(cpu=True))
        optimizer.step()
    with torch.no_grad():
        effect = effects(model.eval(), [(pixels, domain_ids)])["experts"]
    assert min(effect.values()) > 0.1


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_saved_full_slim_and_copied_models_give_the_same_logits(name, tmp_path):
    model = trained_model(name)
    pixels = images_for(model)
    for folder, slim in (("full", False), ("slim", True)):
        model.save_pretrained(tmp_path / folder, slim=slim)
        loaded = GMDFModel.from_pretrained(tmp_path / folder)
        remote = AutoModelForImageClassification.from_pretrained(tmp_path / folder, trust_remote_code=True)
        for route in ROUTES[:2]:
            expected = model(pixels, **route).logits
            torch.testing.assert_close(loaded(pixels, **route).logits, expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(remote(pixels, **route).logits, expected, rtol=0, atol=1e-6)
    copied = copy.deepcopy(model)
    for parameter in model.expert_parameters().values():
        parameter.zero_()
    assert not torch.allclose(copied(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize("name", BACKBONES)
def test_hidden_patches_are_predicted_and_change_the_features(name):
    model = trained_model(name)
    pixels, side = images_for(model), model.config.image_size // model.config.patch_size
    mask = torch.zeros(4, side**2, dtype=torch.bool)
    mask[:, 1:3] = True
    with torch.no_grad():
        model.mim_head.mask_token.normal_()
    output = model(pixels, bool_masked_pos=mask)
    assert output.mim_code_logits.shape == (8, 20)
    assert output.mim_pixels.shape == (8, 3 * model.config.patch_size**2)
    assert not torch.equal(output.image_embeds, model(pixels).image_embeds)
    output.mim_pixels.sum().backward()
    assert model.mim_head.mask_token.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="bool_masked_pos"):
        model(pixels, bool_masked_pos=mask[:, 1:])


@pytest.mark.parametrize("name", BACKBONES)
def test_the_heatmap_has_a_number_a_place_and_the_experts_their_shares(name):
    model = trained_model(name)
    output = model(images_for(model), output_hidden_states=True, output_expert_weights=True)
    maps = evidence_map(output.hidden_states[-2], output.logits)
    assert maps.ndim == 3 and maps.shape[1] == maps.shape[2] >= 2
    assert maps.abs().sum() > 0
    for shares in output.expert_weights:
        torch.testing.assert_close(shares.sum(-1), torch.ones(4))


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_the_exported_route_of_unknown_domains_gives_the_same_logits(name, tmp_path):
    pytest.importorskip("onnxscript")
    from gmdf_hf.serving.onnx_export import export_onnx
    from gmdf_hf.serving.runtimes import OnnxDetector

    model = trained_model(name)
    export_onnx(model, GMDFImageProcessor.of_size(model.config.image_size), tmp_path / "model.onnx")
    pixels = images_for(model, 3)
    exported = OnnxDetector(tmp_path / "model.onnx", threads=1)(pixels).logits
    torch.testing.assert_close(exported, model(pixels).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["siglip", "dinov3"])
def test_recomputed_activations_follow_the_route_of_their_own_forward_pass(name):
    model = trained_model(name).train()
    pixels = images_for(model)
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        torch.manual_seed(0)  # DINOv3 shifts its positions randomly in training
        model(pixels, domain_ids=ROUTES[1]["domain_ids"], labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name_, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name_], gradient)


def test_timms_gradient_checkpointing_is_refused():
    model = fresh_model("timm vit")
    with pytest.raises(ValueError, match="cannot follow the routing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})


def test_batch_normalisation_keeps_its_statistics_in_training():
    for frozen in (True, False):
        model = fresh_model("timm efficientnet", freeze_batch_norm=frozen).train()
        before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
        model(images_for(model))
        moved = [not torch.equal(value, before[name]) for name, value in model.named_buffers() if name in before]
        assert len(moved) > 0 and any(moved) is not frozen


@torch.no_grad()
def test_the_features_of_clips_resnet_are_timms():
    if not timm_works():
        pytest.skip("timm cannot be imported here")
    vision = {"model_type": "timm_wrapper", "architecture": "resnet50_clip"}
    model = GMDFModel(GMDFConfig(vision_config=vision, domains=["a", "b"], projection_dim=8)).eval()
    pixels = images_for(model, 1)
    network = model.vision_model.timm_model
    torch.testing.assert_close(model.encode_images(pixels)[0].pooler_output, network(pixels), rtol=0, atol=1e-5)


def test_what_has_no_place_for_experts_is_refused():
    backbone: Any = torch.nn.Linear(3, 3)
    backbone.config = SimpleNamespace()
    with pytest.raises(ValueError, match="cannot add experts to Linear"):
        BackboneExperts(backbone)
    with pytest.raises(Exception, match="towers need each other"):
        GMDFConfig(vision_config=BACKBONES["dinov2"], text_config=TEXT, domains=["a"])
    with pytest.raises(Exception, match="P3"):
        GMDFConfig(vision_config=BACKBONES["dinov2"], prompt="P3", domains=["a"])
    with pytest.raises(ValueError, match="no text tower"):
        fresh_model("dinov2").encode_prompts(torch.zeros(2, 3, dtype=torch.long))


def test_clip_goes_through_from_clip(clip_folder):
    model = GMDFModel.from_backbone(clip_folder, domains=["a", "b"], prompt_ids=[[0, 5, 98], [0, 6, 98]])
    assert model.config.is_clip
    pixels = images_for(model)
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    features = clip.get_image_features(pixels)
    features = getattr(features, "pooler_output", features)
    torch.testing.assert_close(model.visual_projection(model.encode_images(pixels)[0].pooler_output), features)
