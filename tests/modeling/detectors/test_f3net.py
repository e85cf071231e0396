"""F3-Net's equations by explicit sums and loops."""

import math

import pytest
import torch

from gmdf_hf.modeling.detectors.dct import band_filters
from gmdf_hf.modeling.detectors.f3net import (
    CrossAttention,
    F3Net,
    F3NetConfig,
    FrequencyAwareDecomposition,
    LocalFrequencyStatistics,
)

SIDE = 6


def wave(k: int, size: int) -> torch.Tensor:
    """The k-th cosine of a DCT of that size."""
    scale = math.sqrt((1 if k == 0 else 2) / size)
    return torch.tensor([scale * math.cos(math.pi * (2 * n + 1) * k / (2 * size)) for n in range(size)])


def transform(x: torch.Tensor) -> torch.Tensor:
    """DCT of one channel by its definition: a sum over all pixels for each frequency."""
    waves = [wave(k, len(x)) for k in range(len(x))]
    return torch.stack([torch.stack([(u[:, None] * v * x).sum() for v in waves]) for u in waves])


def inverse(y: torch.Tensor) -> torch.Tensor:
    """A sum of all waves."""
    waves = [wave(k, len(y)) for k in range(len(y))]
    return sum(y[u, v] * waves[u][:, None] * waves[v] for u in range(len(y)) for v in range(len(y)))


def sigma(x: torch.Tensor) -> torch.Tensor:
    return (1 - torch.exp(-x)) / (1 + torch.exp(-x))


@torch.no_grad()
def test_components_are_those_of_equation_1():
    torch.manual_seed(0)
    module, image = FrequencyAwareDecomposition(SIDE), torch.randn(3, SIDE, SIDE)
    found = module(image[None])[0].view(3, 3, SIDE, SIDE)
    for band in range(3):
        for colour in range(3):
            expected = inverse(transform(image[colour]) * (module.base[band] + sigma(module.learned[band])))
            torch.testing.assert_close(found[band, colour], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bands_are_the_first_sixteenth_the_second_and_the_rest():
    """Of all frequencies, not of the antidiagonals."""
    bands = FrequencyAwareDecomposition(256).base
    assert bands.mean((1, 2)).tolist() == pytest.approx([1 / 16, 1 / 16, 7 / 8], abs=0.002)
    assert torch.equal(bands.sum(0), torch.ones(256, 256))
    bands = band_filters(4, [2.5, 4])
    for u in range(4):
        for v in range(4):
            assert bands[:, u, v].bool().tolist() == [u + v <= 2, u + v == 3, u + v >= 4]
    module = FrequencyAwareDecomposition(16)
    module.learned.zero_()
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(module(image).unflatten(1, (3, 3)).sum(1), image, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_statistics_are_those_of_equation_2():
    torch.manual_seed(0)
    module, image = LocalFrequencyStatistics(), torch.randn(3, 9, 9)
    framed = torch.zeros(3, 17, 17)
    framed[:, 4:13, 4:13] = image
    found = module(image[None])[0]
    assert found.shape == (6, 4, 4)
    for row, column in ((0, 0), (1, 3)):
        window = framed[:, 2 * row : 2 * row + 10, 2 * column : 2 * column + 10]
        spectra = [transform(colour) for colour in window]
        for band in range(6):
            kernel = module.base[band] + sigma(module.learned[band])
            size = sum(float((spectrum * kernel).abs().sum()) for spectrum in spectra)
            assert float(found[band, row, column]) == pytest.approx(math.log10(size), abs=1e-4)


@torch.no_grad()
def test_each_stream_sees_the_other():
    torch.manual_seed(0)
    module = CrossAttention(8)
    module.gains.normal_()
    first, second = torch.randn(2, 8, 2, 3), torch.randn(2, 8, 2, 3)
    found = module(first, second)
    for image in range(2):
        streams = [stream[image].flatten(1) for stream in (first, second)]
        both = torch.cat(streams)
        weights = [conv.weight[:, :, 0, 0] @ both for conv in (module.query, module.key)]
        for own, other in ((0, 1), (1, 0)):
            for i in range(6):
                scores = torch.stack([weights[0][:, i] @ weights[1][:, j] for j in range(6)]) / 1**0.5
                shares = scores.exp() / scores.exp().sum()
                seen = sum(shares[j] * streams[other][:, j] for j in range(6))
                expected = streams[own][:, i] + module.gains[own, :, 0, 0] * seen
                torch.testing.assert_close(found[own][image].flatten(1)[:, i], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", [64, 65])
def test_both_streams_have_maps_of_one_size(side):
    model = F3Net(F3NetConfig(image_size=side, width=0.0625)).eval()
    image = torch.randn(1, 3, side, side)
    first = model.first.stem(model.decomposition(image))
    assert first.shape == model.second.stem(model.statistics(image)).shape
