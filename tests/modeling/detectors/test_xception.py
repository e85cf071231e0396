"""Xception's convolution and block by loops, and the whole network beside timm's."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from gmdf_hf.modeling.detectors.xception import (
    SeparableConv2d,
    Xception,
    XceptionBlock,
    XceptionConfig,
    XceptionDetector,
)


def convolve(x: torch.Tensor, weight: torch.Tensor, padding: int = 0, stride: int = 1) -> torch.Tensor:
    """Convolution of one image `(I, H, W)` with `(O, I, k, k)`, one output value at a time."""
    side, (_, high, wide) = weight.shape[-1], x.shape
    framed = torch.zeros(len(x), high + 2 * padding, wide + 2 * padding)
    framed[:, padding : padding + high, padding : padding + wide] = x
    rows, columns = ((length + 2 * padding - side) // stride + 1 for length in (high, wide))
    out = torch.zeros(len(weight), rows, columns)
    for o in range(len(weight)):
        for i in range(rows):
            for j in range(columns):
                window = framed[:, i * stride : i * stride + side, j * stride : j * stride + side]
                out[o, i, j] = (weight[o] * window).sum()
    return out


def separable(conv: SeparableConv2d, x: torch.Tensor) -> torch.Tensor:
    """Each channel with its own kernel, then a mix of the channels."""
    channels = torch.cat([convolve(x[i : i + 1], conv.depthwise.weight[i : i + 1], padding=1) for i in range(len(x))])
    return convolve(channels, conv.pointwise.weight)


def largest(x: torch.Tensor) -> torch.Tensor:
    """Maximum of each 3 x 3 window around every second pixel."""
    high, wide = ((length + 1) // 2 for length in x.shape[1:])
    out = torch.zeros(len(x), high, wide)
    for i in range(high):
        for j in range(wide):
            rows, columns = slice(max(2 * i - 1, 0), 2 * i + 2), slice(max(2 * j - 1, 0), 2 * j + 2)
            out[:, i, j] = x[:, rows, columns].amax((1, 2))
    return out


@pytest.mark.parametrize(("halves", "first_relu"), [(True, True), (True, False), (False, True)])
@torch.no_grad()
def test_a_block_is_that_of_the_paper(halves, first_relu):
    torch.manual_seed(0)
    channels = (3, 2, 4) if halves else (3, 3, 3, 3)
    block = XceptionBlock(channels, halves, first_relu).eval()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 5, 6)

    def normal(norm: torch.nn.BatchNorm2d, y: torch.Tensor) -> torch.Tensor:
        deviation = (norm.running_var + norm.eps).sqrt()
        return (y - norm.running_mean[:, None, None]) / deviation[:, None, None]

    y = x
    for number, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True)):
        y = normal(norm, separable(conv, y.clamp(min=0) if number or first_relu else y))
    skip = normal(block.skip_norm, convolve(x, block.skip.weight, stride=2)) if halves else x
    expected = skip + (largest(y) if halves else y)
    torch.testing.assert_close(block(x[None])[0], expected, rtol=1e-4, atol=1e-5)


def test_sizes_are_those_of_figure_5():
    with torch.device("meta"):
        network, x = Xception(), torch.zeros(1, 3, 299, 299)
        x = network.stem(x)
        shapes = [tuple(x.shape[1:])]
        for block in network.blocks:
            x = block(x)
            shapes.append(tuple(x.shape[1:]))
        shapes.append(tuple(network.tail(x).shape[1:]))
    middle = [(728, 19, 19)] * 9
    assert shapes == [(64, 147, 147), (128, 74, 74), (256, 37, 37), *middle, (1024, 10, 10), (2048, 10, 10)]
    assert (
        sum(parameter.numel() for parameter in network.parameters()) == 22_855_952 - 2_049_000
    )  # without 1000 classes


def test_weights_of_timm_give_the_features_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("legacy_xception", pretrained=False, num_classes=2).eval()
    save_file(
        {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "model.safetensors"
    )
    ours = XceptionDetector(XceptionConfig(image_size=71)).eval()
    tensors = load_file(tmp_path / "model.safetensors")
    ours.load_backbone(tensors)
    images = torch.randn(2, 3, 71, 71)
    with torch.no_grad():
        torch.testing.assert_close(ours.network(images), theirs.forward_features(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"no weights of timm's legacy_xception: block1\.rep\.0\.conv1\.weight"):
        ours.load_backbone({name: tensor for name, tensor in tensors.items() if name != "block1.rep.0.conv1.weight"})
