"""Local-relation's high frequencies, attention, similarities and losses by loops."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from gmdf_hf.modeling.detectors.efficientnet_b4 import efficientnet_b4
from gmdf_hf.modeling.detectors.local_relation import (
    HighFrequencies,
    LocalRelation,
    LocalRelationConfig,
    RGBFrequencyAttention,
    off_diagonal,
    similarity_of,
    similarity_of_masks,
)

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.tensor([0, 1, 1])
FORGED = torch.zeros(3, 64, 64)
FORGED[1, 8:40, 8:30], FORGED[2] = 0.8, -1.0  # the third one's mask is unknown


@pytest.fixture
def detector() -> LocalRelation:
    torch.manual_seed(0)
    return LocalRelation(LocalRelationConfig(image_size=64, width=0.0625))


def test_the_filter_passes_frequencies_behind_an_antidiagonal():
    size = 9

    def wave(k: int) -> torch.Tensor:
        return torch.tensor([math.cos(math.pi * (2 * n + 1) * k / (2 * size)) for n in range(size)])

    module = HighFrequencies(size)
    for u in range(size):
        for v in range(size):
            plane = wave(u)[:, None] * wave(v)
            image = torch.stack([plane, 2 * plane, -plane])[None]
            grey = (0.299 + 2 * 0.587 - 0.114) * plane
            expected = grey if u + v >= 0.33 * size else torch.zeros_like(plane)
            torch.testing.assert_close(module(image)[0, 0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_stream_is_weighed_by_its_map():
    torch.manual_seed(0)
    module, colours, frequencies = RGBFrequencyAttention(3).eval(), torch.randn(1, 3, 4, 5), torch.randn(1, 3, 4, 5)
    module.norm.running_mean.uniform_(-1, 1)
    module.norm.running_var.uniform_(0.5, 2)
    found = module(colours, frequencies)
    inner = torch.zeros(3, 6, 7)  # with a frame of zeros
    scale = (module.norm.running_var + module.norm.eps).rsqrt()
    for i in range(4):
        for j in range(5):
            both = torch.cat([colours[0, :, i, j], frequencies[0, :, i, j]])
            x = module.conv1.weight[:, :, 0, 0] @ both + module.conv1.bias
            inner[:, i + 1, j + 1] = ((x - module.norm.running_mean) * scale).clamp(min=0)
    for i in range(4):
        for j in range(5):
            x = (module.conv2.weight * inner[:, i : i + 3, j : j + 3]).sum((1, 2, 3)) + module.conv2.bias
            for number, stream in enumerate((colours, frequencies)):
                expected = stream[0, :, i, j] / (1 + math.exp(-float(x[number])))
                torch.testing.assert_close(found[number][0, :, i, j], expected, rtol=1e-4, atol=1e-5)


def test_patches_are_compared_by_their_cosine_and_masks_by_their_shares():
    features = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(1))
    forged = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(2))
    found, aims = similarity_of(features, 2), similarity_of_masks(forged, 2)
    places = [(slice(2 * i, 2 * i + 2), slice(4 * j, 4 * j + 4)) for i in range(2) for j in range(2)]
    for image in range(2):
        for i, first in enumerate(places):
            for j, second in enumerate(places):
                a, b = (features[(image, slice(None), *place)].flatten() for place in (first, second))
                cosine = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
                assert float(found[image, i, j]) == pytest.approx((1 + cosine) / 2, abs=1e-5)
                shares = [float(forged[(image, *place)].mean()) for place in (first, second)]
                assert float(aims[image, i, j]) == pytest.approx(1 - abs(shares[0] - shares[1]), abs=1e-5)
    pairs = [found[0, i, j] for i in range(4) for j in range(4) if i != j]
    assert torch.equal(off_diagonal(found)[0], torch.stack(pairs))


def test_losses_image_by_image(detector):
    output = detector.train().classify(IMAGES)
    losses = detector.losses(output, IMAGES, LABELS, LABELS * 0, FORGED)
    assert list(losses) == ["classification", "similarity", "segmentation"]
    assert output.similarity.shape == (3, 4, 4) and output.segmentation.shape == FORGED.shape
    for image in (0, 1):
        aim = similarity_of_masks(FORGED, 2)[image]
        torch.testing.assert_close(losses["similarity"][image], (output.similarity[image] - aim).pow(2).mean())
        expected = binary_cross_entropy_with_logits(output.segmentation[image], FORGED[image])
        torch.testing.assert_close(losses["segmentation"][image], expected)
    without = detector.losses(output, IMAGES, LABELS, LABELS * 0, None)
    for name in ("similarity", "segmentation"):
        assert losses[name][2] == 0 and not without[name].any()
    assert list(detector.eval().losses(detector.classify(IMAGES), IMAGES, LABELS, LABELS * 0, FORGED)) == [
        "classification",
        "similarity",
    ]


@torch.no_grad()
def test_streams_go_on_under_attention_and_their_sums_are_compared(detector):
    """With attention maps of 1/2 and streams of known features, the similarities are those of the sums."""
    detector.eval()
    for attention in detector.attentions:
        attention.conv2.weight.zero_()
        attention.conv2.bias.zero_()
    x = [network.stem(image) for network, image in zip(detector.streams, inputs_of(detector), strict=True)]
    joined = []
    for numbers in ((1, 2, 3), (4, 5), (6, 7)):
        for stream, network in enumerate(detector.streams):
            for number in numbers:
                x[stream] = network.stage(x[stream], number)
            x[stream] = (network.tail(x[stream]) if 7 in numbers else x[stream]) / 2
        joined.append(x[0] + x[1])
    assert [feature.shape[-1] for feature in joined] == [8, 4, 2]
    features = torch.cat([joined[0][..., ::4, ::4], joined[1][..., ::2, ::2], joined[2]], dim=1)
    torch.testing.assert_close(detector.classify(IMAGES).similarity, similarity_of(features, 2), rtol=1e-4, atol=1e-5)


def inputs_of(detector: LocalRelation) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of the two streams."""
    return IMAGES, detector.high_frequencies(IMAGES).repeat(1, 3, 1, 1)


def test_pretrained_weights_of_transformers_are_loaded_into_both_streams(detector):
    torch.manual_seed(1)
    source = efficientnet_b4(image_size=64, width=0.0625).state_dict()
    detector.load_backbone(source)
    for network in detector.streams:
        for name, tensor in network.network.state_dict().items():
            assert torch.equal(tensor, source[f"efficientnet.{name}"]), name


@pytest.mark.parametrize("side", [32, 80, 160])
def test_sides_that_the_grid_does_not_divide_are_refused(side):
    with pytest.raises(Exception, match=f"64, 96 or a multiple of 128, found {side}"):
        LocalRelationConfig(image_size=side)
