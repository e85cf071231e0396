"""GenD's losses by loops over pairs, and what of a model it trains."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import normalize
from transformers import CLIPTextConfig, CLIPVisionConfig, ViTConfig, ViTForImageClassification

from gmdf_hf import GMDFModel
from gmdf_hf.data.episodes import Episode
from gmdf_hf.training.methods.gend import GenD, alignment, uniformity
from gmdf_hf.training.methods.merged import equal_shares
from tests.conftest import tiny_config

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}  # noqa: E501  # fmt: skip


def test_losses_are_means_over_pairs():
    torch.manual_seed(0)
    x, labels = normalize(torch.randn(7, 5), dim=-1), torch.tensor([0, 1, 0, 1, 1, 0, 0])
    pairs = [(i, j) for i in range(7) for j in range(i)]
    same = [sum(float((x[i][d] - x[j][d]) ** 2) for d in range(5)) for i, j in pairs if labels[i] == labels[j]]
    assert float(alignment(x, labels)) == pytest.approx(sum(same) / len(same), rel=1e-5)
    powers = [math.exp(-2 * sum(float((x[i][d] - x[j][d]) ** 2) for d in range(5))) for i, j in pairs]
    assert float(uniformity(x)) == pytest.approx(math.log(sum(powers) / len(powers)), rel=1e-5)


def test_losses_without_a_pair_are_zero():
    x = normalize(torch.randn(2, 5), dim=-1)
    assert alignment(x, torch.tensor([0, 1])) == 0 and uniformity(x[:1]) == 0


def episode() -> Episode:
    pixel_values = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Episode.of(pixel_values, torch.tensor([0, 0, 1, 1] * 2), torch.tensor([0] * 4 + [1] * 4))


def test_the_step_is_the_sum_of_its_losses():
    torch.manual_seed(0)
    model = GMDFModel(tiny_config(domains=["a", "b"])).train()
    method, batch = GenD(equal_shares(2)), episode()
    parameters = method.prepare(model)
    found = method.step(model, batch, Accelerator())
    gradients = [parameter.grad.clone() for parameter in parameters]
    output = model(batch.pixel_values, labels=batch.labels)
    terms = output.loss, alignment(output.image_embeds, batch.labels), uniformity(output.image_embeds)
    assert [float(value) for value in found.values()] == pytest.approx(
        [float(weight * term.detach()) for weight, term in zip((1, 0.1, 0.5), terms, strict=True)], rel=1e-5
    )
    expected = torch.autograd.grad(terms[0] + 0.1 * terms[1] + 0.5 * terms[2], parameters)
    for gradient, of_sum in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, of_sum, rtol=1e-4, atol=1e-6)


def test_normalisations_and_head_train():
    model = GMDFModel(tiny_config())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = {names[id(parameter)] for parameter in GenD(equal_shares(3)).prepare(model)}
    norms = {name for name in trained if "norm" in name}
    assert len(norms) == 2 * (2 + 2 * 2) and all(name.startswith("vision_model.") for name in norms)
    assert trained - norms == {"visual_projection.weight", "logit_scale"}
    vit = ViTForImageClassification(ViTConfig(**VIT, num_labels=2))
    method = GenD(equal_shares(2))
    parameters = method.prepare(vit.train())
    assert {name.split(".")[-2] for name, each in vit.named_parameters() if each.requires_grad} == {
        "layernorm_before",
        "layernorm_after",
        "layernorm",
        "classifier",
    }
    method.step(vit, episode(), Accelerator())
    assert all(parameter.grad is not None for parameter in parameters)


def test_parameters_of_the_published_network_are_counted():
    text = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )
    with torch.device("meta"):
        model = GMDFModel(tiny_config(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=768))
    parameters = GenD(equal_shares(3)).prepare(model)
    assert sum(parameter.numel() for parameter in parameters if parameter.ndim == 1) == 102_400
    assert sum(parameter.numel() for parameter in parameters) == 102_400 + 786_433
