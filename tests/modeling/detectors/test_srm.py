"""The SRM detector's equations by explicit sums and loops."""

import math

import pytest
import torch

from gmdf_hf.modeling.detectors.srm import (
    KERNELS,
    DualCrossModalityAttention,
    ResidualGuidedAttention,
    Residuals,
    SRMConfig,
    SRMDetector,
)


def filtered(plane: torch.Tensor, number: int) -> torch.Tensor:
    """One kernel over one channel, cut off by nothing."""
    rows, divisor = KERNELS[number]
    out = torch.zeros_like(plane)
    for i in range(plane.shape[0]):
        for j in range(plane.shape[1]):
            for a in range(5):
                for b in range(5):
                    row, column = i + a - 2, j + b - 2
                    if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                        out[i, j] += rows[a][b] / divisor * plane[row, column]
    return out


@torch.no_grad()
def test_residuals_by_explicit_convolution():
    torch.manual_seed(0)
    image = 3 * torch.randn(3, 6, 7)
    found = Residuals()(image[None])[0]
    for kernel in range(3):
        expected = sum(filtered(colour, kernel) for colour in image).clamp(-3, 3)
        torch.testing.assert_close(found[kernel], expected, rtol=1e-4, atol=1e-5)
    module = Residuals(3)
    residuals = torch.stack([filtered(plane, kernel) for plane in image for kernel in range(3)]).clamp(-3, 3)
    expected = torch.einsum("oi,ihw->ohw", module.mix.weight[:, :, 0, 0], residuals)
    torch.testing.assert_close(module(image[None])[0], expected, rtol=1e-4, atol=1e-5)
    assert all(sum(map(sum, rows)) == 0 for rows, _ in KERNELS)  # a flat area has no residual


@torch.no_grad()
def test_guidance_pixel_by_pixel():
    torch.manual_seed(0)
    module, colours, residuals = ResidualGuidedAttention(), torch.randn(1, 4, 5, 5), torch.randn(1, 4, 5, 5)
    found = module(colours, residuals)[0]
    for i in range(5):
        for j in range(5):
            score = float(module.conv.bias)
            for a in range(7):
                for b in range(7):
                    row, column = i + a - 3, j + b - 3
                    if 0 <= row < 5 and 0 <= column < 5:
                        values = residuals[0, :, row, column]
                        score += float(module.conv.weight[0, 0, a, b] * values.mean())
                        score += float(module.conv.weight[0, 1, a, b] * values.max())
            expected = colours[0, :, i, j] * (1 + 1 / (1 + math.exp(-score)))
            torch.testing.assert_close(found[:, i, j], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_position_by_position():
    torch.manual_seed(0)
    module = DualCrossModalityAttention(16)
    module.gains.copy_(torch.tensor([0.7, -0.4]))
    streams = torch.randn(1, 16, 2, 3), torch.randn(1, 16, 2, 3)
    found = [stream[0].flatten(1) for stream in module(*streams)]
    flat = [stream[0].flatten(1) for stream in streams]
    keys = [key.weight[:, :, 0, 0] @ stream for key, stream in zip(module.keys, flat, strict=True)]
    values = [
        value.weight[:, :, 0, 0] @ stream + value.bias[:, None]
        for value, stream in zip(module.values, flat, strict=True)
    ]
    scores = torch.tensor(
        [[float(keys[0][:, i] @ module.compare.weight.T @ keys[1][:, j]) for j in range(6)] for i in range(6)]
    )
    scores = scores / 2**0.5
    for own, other, table in ((0, 1, scores), (1, 0, scores.T)):
        for i in range(6):
            shares = table[i].exp() / table[i].exp().sum()
            seen = sum(shares[j] * values[other][:, j] for j in range(6))
            expected = flat[own][:, i] + module.gains[own] * seen
            torch.testing.assert_close(found[own][:, i], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_loss_is_the_additive_margin_softmax():
    torch.manual_seed(0)
    detector = SRMDetector(SRMConfig(image_size=64, width=0.0625)).eval()
    images, labels = torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 1])
    output = detector(images, labels=labels)
    cosines, losses = output.logits / 30, []
    assert cosines.abs().max() <= 1 + 1e-5
    for image, label in enumerate(labels.tolist()):
        own, other = float(cosines[image, label]), float(cosines[image, 1 - label])
        losses.append(-math.log(math.exp(30 * (own - 0.45)) / (math.exp(30 * (own - 0.45)) + math.exp(30 * other))))
    assert float(output.loss) == pytest.approx(sum(losses) / 3, rel=1e-4)
