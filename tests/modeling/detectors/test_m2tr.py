"""M2TR's attention, filter, fusion and losses by loops."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from gmdf_hf.modeling.detectors.m2tr import (
    M2TR,
    CrossModalityFusion,
    FrequencyFilter,
    M2TRConfig,
    MultiScaleAttention,
    contrast,
    joined,
    patches_of,
)

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.tensor([0, 1, 0, 1])


class Doubled(torch.nn.Module):
    """In the place of convolutions that have tests of their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_patches_are_cut_row_by_row_and_joined_again():
    x = torch.arange(2 * 8 * 8.0).view(1, 2, 8, 8)
    found = patches_of(x, 4)
    for i in range(4):
        for j in range(4):
            assert torch.equal(found[0, 4 * i + j], x[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten())
    assert torch.equal(joined(found, 4, 2), x)


@torch.no_grad()
def test_each_head_compares_patches_of_its_size():
    torch.manual_seed(0)
    module, x = MultiScaleAttention(8).eval(), torch.randn(1, 8, 8, 8)
    module.output, module.feed_forward = Doubled(), Doubled()
    query, key, value = (conv(x)[0] for conv in (module.query, module.key, module.value))
    seen = torch.zeros(8, 8, 8)
    for head, count in enumerate((1, 2, 4, 8)):
        own, side = slice(2 * head, 2 * head + 2), 8 // count
        places = [
            (own, slice(side * i, side * i + side), slice(side * j, side * j + side))
            for i in range(count)
            for j in range(count)
        ]
        for place in places:
            scores = [float((query[place] * key[other]).sum()) / math.sqrt(2 * side**2) for other in places]
            shares = torch.tensor(scores).softmax(0)
            seen[place] = sum(share * value[other] for share, other in zip(shares, places, strict=True))
    torch.testing.assert_close(module(x)[0], 3 * (x[0] + 2 * seen), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_filter_weights_every_frequency():
    torch.manual_seed(0)
    module, x, side = FrequencyFilter(1, 4), torch.randn(1, 1, 4, 4), 4
    module.feed_forward = Doubled()
    waves = [[complex(0, -2 * math.pi * u * i / side) for i in range(side)] for u in range(side)]
    wave = torch.tensor(waves).exp() / math.sqrt(side)
    spectrum = wave @ x[0, 0].to(wave.dtype) @ wave.T
    weight = torch.view_as_complex(module.weight)[0]
    filtered = torch.fft.irfft2(spectrum[:, : side // 2 + 1] * weight, s=(side, side), norm="ortho")
    torch.testing.assert_close(module(x)[0, 0], x[0, 0] + 2 * filtered, rtol=1e-4, atol=1e-5)
    module.weight.copy_(torch.tensor([1.0, 0.0]).expand_as(module.weight))
    torch.testing.assert_close(module(x), 3 * x, rtol=1e-4, atol=1e-5)  # a filter that passes all


@torch.no_grad()
def test_positions_of_the_image_attend_to_the_spectrum():
    torch.manual_seed(0)
    module, x, filtered = CrossModalityFusion(4), torch.randn(1, 4, 2, 3), torch.randn(1, 4, 2, 3)
    module.output = Doubled()
    query, key, value = (
        conv(part)[0].flatten(1) for conv, part in ((module.query, x), (module.key, filtered), (module.value, filtered))
    )
    found = module(x, filtered)[0].flatten(1)
    for i in range(6):
        shares = torch.stack([query[:, i] @ key[:, j] / 2 for j in range(6)]).softmax(0)
        seen = sum(shares[j] * value[:, j] for j in range(6))
        torch.testing.assert_close(found[:, i], x[0].flatten(1)[:, i] + 2 * seen, rtol=1e-4, atol=1e-5)


def test_reals_are_pulled_to_their_mean_and_fakes_pushed_away():
    features = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    centre = (features[0] + features[2]) / 2
    distances = [1 - float(torch.cosine_similarity(each, centre, dim=0)) for each in features]
    expected = (distances[0] + distances[2]) / 2 - (distances[1] + distances[3]) / 2
    assert float(contrast(features, LABELS).mean()) == pytest.approx(expected, abs=1e-5)
    assert not contrast(features, LABELS * 0).any() and not contrast(features, LABELS * 0 + 1).any()


def test_losses_are_the_weighted_sums():
    torch.manual_seed(0)
    detector = M2TR(M2TRConfig(image_size=64, width=0.0625)).train()
    forged = torch.zeros(4, 64, 64)
    forged[1, 20:40], forged[3] = 1.0, -1.0
    output = detector.classify(IMAGES)
    losses = detector.losses(output, IMAGES, LABELS, LABELS * 0, forged)
    assert list(losses) == ["classification", "contrast", "segmentation"]
    torch.testing.assert_close(losses["contrast"], 0.001 * contrast(output.features, LABELS))
    for image in range(3):
        expected = binary_cross_entropy_with_logits(output.segmentation[image], forged[image])
        torch.testing.assert_close(losses["segmentation"][image], expected)
    assert losses["segmentation"][3] == 0
    with pytest.raises(Exception, match="multiple of 32, found 80"):
        M2TRConfig(image_size=80)
