"""MesoInception-4 beside a literal form of its figures."""

import torch

from gmdf_hf.modeling.detectors.meso_inception4 import MesoInception, MesoInception4, MesoInception4Config


def dilated(x: torch.Tensor, conv: torch.nn.Conv2d, dilation: int) -> torch.Tensor:
    """A 3 x 3 convolution whose nine taps are `dilation` pixels apart, of one image `(I, H, W)`."""
    _, high, wide = x.shape
    out = conv.bias[:, None, None].expand(-1, high, wide).clone()
    for i in range(high):
        for j in range(wide):
            for a in range(3):
                for b in range(3):
                    row, column = i + (a - 1) * dilation, j + (b - 1) * dilation
                    if 0 <= row < high and 0 <= column < wide:
                        out[:, i, j] += conv.weight[:, :, a, b] @ x[:, row, column]
    return out


def point(x: torch.Tensor, conv: torch.nn.Conv2d) -> torch.Tensor:
    return (torch.einsum("oi,ihw->ohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]).clamp(min=0)


@torch.no_grad()
def test_an_inception_module_is_that_of_figure_4():
    torch.manual_seed(0)
    module, x = MesoInception(3, (1, 4, 4, 2)), torch.randn(3, 5, 7)
    branches = [point(x, module.points[0])]
    for dilation in (1, 2, 3):
        inner = point(x, module.points[dilation])
        branches.append(dilated(inner, module.dilated[dilation - 1], dilation).clamp(min=0))
    torch.testing.assert_close(module(x[None])[0], torch.cat(branches), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_layers_are_those_of_figure_3():
    model = MesoInception4(MesoInception4Config()).eval()
    sizes: list[tuple[int, ...]] = []
    for norm in model.norms:
        norm.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    logits = model(torch.zeros(1, 3, 256, 256)).logits
    assert sizes == [(11, 256, 256), (12, 128, 128), (16, 64, 64), (16, 32, 32)]
    assert model.hidden.in_features == 16 * 8 * 8
    assert logits[0, 0] == 0  # softmax of (0, z) is the sigmoid of z
