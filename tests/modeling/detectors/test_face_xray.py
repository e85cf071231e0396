"""Face X-ray's boundary, losses and HRNet's fusion by loops."""

import math

import pytest
import torch

from gmdf_hf.modeling.detectors.face_xray import FaceXray, FaceXrayConfig, xray
from gmdf_hf.modeling.detectors.hrnet import HighResolutionModule, HRNet, ResidualBlock

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.tensor([0, 1, 1])


def test_the_boundary_is_brightest_where_both_pictures_are_mixed_equally():
    mask = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert xray(mask).tolist() == [0.0, 0.75, 1.0, 0.75, 0.0]


@torch.no_grad()
@pytest.mark.parametrize("expansion", [1, 4])
def test_residual_blocks_have_a_shortcut(expansion):
    torch.manual_seed(0)
    block, x = ResidualBlock(6, 6 if expansion == 1 else 2, expansion).eval(), torch.randn(1, 6, 5, 5)
    y = x
    for number, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True)):
        y = conv(y if number == 0 else y.clamp(min=0)) / (1 + norm.eps) ** 0.5
    shortcut = x if block.downsample is None else block.downsample[0](x) / (1 + 1e-5) ** 0.5
    assert (block.downsample is None) is (expansion == 1)
    torch.testing.assert_close(block(x), (y + shortcut).clamp(min=0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_branches_are_fused_at_every_resolution():
    torch.manual_seed(0)
    module = HighResolutionModule((2, 3, 4)).eval()
    xs = [torch.randn(1, channels, 8 >> i, 8 >> i) for i, channels in enumerate((2, 3, 4))]
    own = [branch(x) for branch, x in zip(module.branches, xs, strict=True)]
    for i, found in enumerate(module(xs)):
        total = torch.zeros_like(own[i])
        for j in range(3):
            part = module.fuse_layers[i][j](own[j])
            if j > i:  # each value becomes a square
                part = part.repeat_interleave(2 ** (j - i), 2).repeat_interleave(2 ** (j - i), 3)
            total += part
        torch.testing.assert_close(found, total.clamp(min=0), rtol=1e-4, atol=1e-5)
    assert [len(module.fuse_layers[2][j]) for j in (0, 1)] == [2, 1]  # steps down
    assert module.fuse_layers[2][0][0][0].stride == (2, 2)


def test_hrnet_has_the_published_size():
    """With the head of the published segmentation network: 65,859,379, printed as 65.9 million."""
    with torch.device("meta"):
        network = HRNet()
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 720, 16, 16)
    head = 720 * 720 + 720 + 2 * 720 + 720 * 19 + 19
    assert sum(parameter.numel() for parameter in network.parameters()) + head == 65_859_379


@torch.no_grad()
def test_the_loss_pixel_by_pixel():
    torch.manual_seed(0)
    detector = FaceXray(FaceXrayConfig(image_size=64, width=0.0625)).train()
    forged = torch.zeros(3, 64, 64)
    forged[1, 20:40, 20:40], forged[2] = 0.3, -1.0  # the third one's mask is unknown
    output = detector.classify(IMAGES)
    found = detector.losses(output, IMAGES, LABELS, torch.zeros(3, dtype=torch.long), forged)
    for image in (0, 1):
        total, shares = 0.0, []
        for i in range(64):
            for j in range(64):
                share = 1 / (1 + math.exp(-float(output.boundary[image, i, j])))
                wanted = 4 * 0.3 * 0.7 if forged[image, i, j] > 0 else 0.0
                total -= wanted * math.log(share) + (1 - wanted) * math.log(1 - share)
                shares.append(share)
        assert float(found["boundary"][image]) == pytest.approx(100 * total / 64**2, rel=1e-4)
        mean = sum(shares) / 64**2
        expected = [float(detector.classifier.weight[k, 0]) * mean + float(detector.classifier.bias[k]) for k in (0, 1)]
        assert output.logits[image].tolist() == pytest.approx(expected, abs=1e-4)
    assert found["boundary"][2] == 0
