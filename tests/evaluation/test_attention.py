import pytest
import torch
from transformers import ConvNextConfig, ConvNextForImageClassification, ViTConfig, ViTForImageClassification

from gmdf_hf.evaluation.attention import attention_maps
from tests.conftest import tiny_model


def test_attention_maps_match_class_token_rows(pixel_values):
    model = tiny_model()
    last, rollout = attention_maps(model, pixel_values)
    assert last.shape == rollout.shape == (5, 4, 4)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(pixel_values, output_attentions=True).attentions
    torch.testing.assert_close(last.flatten(1), attentions[-1].mean(1)[:, 0, 1:])
    first, second = (0.5 * (attention.mean(1) + torch.eye(17)) for attention in attentions)
    torch.testing.assert_close(rollout.flatten(1), (second @ first)[:, 0, 1:])


def test_attention_maps_work_for_vit_and_fail_for_convnext():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=24, patch_size=8
    )
    last, rollout = attention_maps(ViTForImageClassification(config), torch.randn(2, 3, 24, 24))
    assert last.shape == rollout.shape == (2, 3, 3)
    net = ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2))
    with pytest.raises(ValueError, match="ConvNextForImageClassification"):
        attention_maps(net, torch.randn(1, 3, 32, 32))
