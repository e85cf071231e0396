"""MAT's pooling, losses and augmentation by loops."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from gmdf_hf.modeling.detectors.efficientnet_b4 import efficientnet_b4
from gmdf_hf.modeling.detectors.mat import (
    MAT,
    MATConfig,
    TextureEnhancement,
    degraded,
    guided,
    pooled,
    regional_independence,
)

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.fixture
def detector() -> MAT:
    torch.manual_seed(0)
    return MAT(MATConfig(image_size=64, width=0.0625))


def test_pooling_sums_features_under_each_map():
    torch.manual_seed(0)
    features, attention = torch.randn(1, 5, 3, 4), torch.rand(1, 2, 3, 4)
    for number in range(2):
        total = sum(attention[0, number, i, j] * features[0, :, i, j] for i in range(3) for j in range(4))
        torch.testing.assert_close(pooled(features, attention)[0, number], total / total.norm())


@torch.no_grad()
def test_textures_are_what_the_averages_of_cells_do_not_hold():
    torch.manual_seed(0)
    module, x = TextureEnhancement(3).eval(), torch.randn(1, 3, 4, 4)
    textures, averages = module(x, (2, 2))
    rest = x.clone()
    for i in range(2):
        for j in range(2):
            cell = x[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
            torch.testing.assert_close(averages[..., i, j], cell)
            rest[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] -= cell[..., None, None]
    scale, parts = 1 / (1 + 1e-5) ** 0.5, [rest]
    for conv in module.convs:
        parts.append(conv((torch.cat(parts, 1) * scale).clamp(min=0)))
    expected = (module.last(torch.cat(parts, 1)) * scale).clamp(min=0)
    torch.testing.assert_close(textures, expected, rtol=1e-4, atol=1e-5)


def test_regional_independence_map_by_map():
    torch.manual_seed(0)
    semantic, centres = torch.randn(4, 3, 5) / 10, torch.randn(3, 5) / 20
    between = sum(max(0.2 - math.dist(centres[j], centres[k]), 0.0) for j in range(3) for k in range(3) if j != k)
    expected = [
        between + sum(max(math.dist(semantic[i, j], centres[j]) - (0.05, 0.1)[label], 0.0) for j in range(3))
        for i, label in enumerate(LABELS.tolist())
    ]
    torch.testing.assert_close(
        regional_independence(semantic, centres, LABELS), torch.tensor(expected), rtol=1e-4, atol=1e-5
    )


def test_centres_follow_the_features_in_training_alone(detector):
    semantic = torch.randn(4, 4, detector.centres.running_mean.shape[1])
    detector.eval().centres(semantic)
    assert not detector.centres.running_mean.any()
    detector.train()
    for _ in range(2):
        found = detector.centres(semantic)
    expected = (1 - 0.95**2) * semantic.mean(0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(detector.centres.running_mean, expected)


def test_augmentation_degrades_where_attention_is():
    attention = torch.zeros(4, 4, 4)
    attention[:, :, 2:] = 3.0
    found, flat = guided(IMAGES, attention), degraded(IMAGES)
    torch.testing.assert_close(found[..., :16], IMAGES[..., :16])
    torch.testing.assert_close(found[..., -16:], flat[..., -16:])
    assert flat.var() < IMAGES.var() / 10
    torch.testing.assert_close(degraded(torch.ones(1, 3, 64, 64)), torch.ones(1, 3, 64, 64))


def test_losses_of_training_and_of_scoring(detector):
    output = detector.eval().classify(IMAGES)
    assert (output.attention > 0).all() and output.attention.shape[:2] == (4, 4)
    assert list(detector.losses(output, IMAGES, LABELS, LABELS * 0)) == ["classification", "independence"]
    output = detector.train().classify(IMAGES)
    losses = detector.losses(output, IMAGES, LABELS, LABELS * 0)
    assert list(losses) == ["classification", "independence", "augmented"]
    torch.testing.assert_close(losses["classification"], cross_entropy(output.logits, LABELS, reduction="none"))


def test_pretrained_weights_of_transformers_are_loaded(detector):
    torch.manual_seed(1)
    source = efficientnet_b4(image_size=64, width=0.0625).state_dict()
    detector.load_backbone(source)
    for name, tensor in detector.features.network.state_dict().items():
        assert torch.equal(tensor, source[f"efficientnet.{name}"]), name
    with pytest.raises(ValueError, match=r"no weights of transformers' efficientnet of this size: embeddings\."):
        detector.load_backbone({})
