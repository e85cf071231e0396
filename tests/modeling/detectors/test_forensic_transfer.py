"""ForensicTransfer's residuals, energies, selection and losses by loops, and its layers one by one."""

import pytest
import torch
from torch.nn.functional import conv2d, relu

from gmdf_hf.modeling.detectors.forensic_transfer import ForensicTransfer, ForensicTransferConfig, half_of, residuals_of

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.tensor([0, 1, 1])


@pytest.fixture
def detector() -> ForensicTransfer:
    """With running statistics and affine normalisations other than those of a new one."""
    torch.manual_seed(0)
    detector = ForensicTransfer(ForensicTransferConfig(image_size=32, width=0.5))
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
    return detector.eval()


def test_residuals_are_third_differences_along_rows_and_columns():
    found = residuals_of(IMAGES)
    assert found.shape == (3, 6, 32, 32)

    def pixel(colour: int, row: int, column: int) -> float:
        return float(IMAGES[1, colour, min(max(row, 0), 31), min(max(column, 0), 31)])

    for colour in range(3):
        for row, column in ((0, 0), (5, 9), (17, 0), (31, 30), (29, 31)):
            along_rows, along_columns = (
                pixel(colour, row + 2 * down, column + 2 * right)
                - 3 * pixel(colour, row + down, column + right)
                + 3 * pixel(colour, row, column)
                - pixel(colour, row - down, column - right)
                for down, right in ((0, 1), (1, 0))
            )
            assert float(found[1, colour, row, column]) == pytest.approx(along_rows, abs=1e-5)
            assert float(found[1, 3 + colour, row, column]) == pytest.approx(along_columns, abs=1e-5)


def test_a_quadratic_image_has_no_residual_inside():
    steps = torch.arange(16.0)
    surface = 0.1 * steps[:, None] ** 2 - 0.2 * steps[None, :] ** 2 + 0.3 * steps[:, None] * steps[None, :]
    found = residuals_of(surface.expand(1, 3, 16, 16))
    torch.testing.assert_close(found[:, :, 1:-2, 1:-2], torch.zeros(1, 6, 13, 13), atol=1e-4, rtol=0)


def normalise(x: torch.Tensor, norm: torch.nn.BatchNorm2d) -> torch.Tensor:
    mean, deviation = norm.running_mean[:, None, None], (norm.running_var + norm.eps).sqrt()[:, None, None]
    return (x - mean) / deviation * norm.weight[:, None, None] + norm.bias[:, None, None]


@torch.no_grad()
def test_the_layers_are_five_convolutions_down_and_five_up(detector):
    convs = [module for module in detector.modules() if isinstance(module, torch.nn.Conv2d)]
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert [conv.out_channels for conv in convs] == [4, 8, 16, 32, 64, 32, 16, 8, 4, 6]
    x = residuals_of(IMAGES)
    for number, conv in enumerate(convs[:5]):
        x = conv2d(x, conv.weight, conv.bias, padding=1)[:, :, :: 2 if number else 1, :: 2 if number else 1]
        x = relu(normalise(x, norms[number - 1]) if number in (1, 2, 3) else x)
    latent = detector.classify(IMAGES).latent
    torch.testing.assert_close(latent, x, rtol=1e-4, atol=1e-5)
    x = normalise(half_of(latent, LABELS), norms[3])
    for conv, norm in zip(convs[5:9], norms[4:], strict=True):
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = relu(normalise(conv2d(x, conv.weight, conv.bias, padding=1), norm))
    x = conv2d(x, convs[9].weight, convs[9].bias, padding=1)
    torch.testing.assert_close(detector.decoder(half_of(latent, LABELS)), x, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_losses_and_logits_by_loops(detector):
    output = detector.classify(IMAGES)
    found = detector.losses(output, IMAGES, LABELS, torch.zeros(3, dtype=torch.long))
    assert list(found) == ["classification", "reconstruction"]
    latent, residuals = output.latent, residuals_of(IMAGES)
    assert latent.shape == (3, 64, 2, 2)
    for image, label in enumerate(LABELS.tolist()):
        energies = []
        for half in (0, 1):
            values = latent[image, 32 * half : 32 * half + 32].flatten().tolist()
            energies.append(sum(map(abs, values)) / len(values))
            assert float(output.logits[image, half]) == pytest.approx(energies[-1], rel=1e-5)
        expected = abs(energies[1] - label) + abs(energies[0] - (1 - label))
        assert float(found["classification"][image]) == pytest.approx(expected, rel=1e-5)
        seen = latent[[image]].clone()
        seen[:, 32 * (1 - label) : 32 * (1 - label) + 32] = 0  # the other class's half
        errors = (detector.decoder(seen)[0] - residuals[image]).flatten().tolist()
        assert float(found["reconstruction"][image]) == pytest.approx(
            0.1 * sum(map(abs, errors)) / len(errors), rel=1e-4
        )


def test_sides_are_multiples_of_16():
    with pytest.raises(Exception, match="multiple of 16, found 40"):
        ForensicTransferConfig(image_size=40)
