"""HRNetV2: a convolutional network that keeps features of high resolution."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate, relu

from .detector import scaled

STEM, FIRST, EXPANSION = 64, 64, 4  # channels of the stem and inside the first stage; its factor to those outside
CHANNELS = (48, 96, 192, 384)  # of the branches, of which each has half the side of the one before
MODULES = (1, 4, 3)  # modules of the stages with two, three and four branches
BLOCKS = 4  # residual blocks of a stage's branch


def conv(inputs: int, outputs: int, side: int = 3, stride: int = 1, activate: bool = True) -> nn.Sequential:
    """Convolution, batch normalisation and, if `activate`, ReLU."""
    layers = [nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if activate else []))


class ResidualBlock(nn.Module):
    """Convolutions beside a shortcut: ``relu(f(x) + s(x))``, with s a 1 x 1 convolution if the channels differ.

    Args:
        inputs: Channels of the input.
        inner: Channels inside.
        expansion: Factor to the output's channels: 1 for two 3 x 3 convolutions, else 1 x 1, 3 x 3 and 1 x 1.
    """

    def __init__(self, inputs: int, inner: int, expansion: int = 1) -> None:
        super().__init__()
        outputs = inner * expansion
        sizes = [(inputs, inner, 3), (inner, outputs, 3)]
        if expansion > 1:
            sizes = [(inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, side, padding=side // 2, bias=False) for a, b, side in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _ in sizes)
        self.downsample = None if inputs == outputs else conv(inputs, outputs, side=1, activate=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features `(B, inputs, H, W)` to `(B, inner * expansion, H, W)`."""
        y = x
        for number, (convolution, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(convolution(relu(y) if number else y))
        return relu(y + (x if self.downsample is None else self.downsample(x)))


class HighResolutionModule(nn.Module):
    """Residual blocks in each branch, then ``y_i = relu(sum_j f_ij(x_j))``.

    f_ij is the identity for i = j; a 1 x 1 convolution and an enlargement by the nearest value for a branch j of lower
    resolution; i - j convolutions of stride 2 for one of higher resolution.

    Args:
        channels: Channels of the branches.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(number, number) for _ in range(BLOCKS))) for number in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._fusion(channels, i, j) for j in range(len(channels))) for i in range(len(channels))
        )

    @staticmethod
    def _fusion(channels: tuple[int, ...], i: int, j: int) -> nn.Module:
        if i == j:
            return nn.Identity()
        if i < j:
            return conv(channels[j], channels[i], side=1, activate=False)
        steps = [conv(channels[j], channels[j], stride=2) for _ in range(i - j - 1)]
        return nn.Sequential(*steps, conv(channels[j], channels[i], stride=2, activate=False))

    def forward(self, xs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map each branch's features `(B, C_i, H / 2^i, W / 2^i)` to the same shape."""
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        fused = []
        rows: Any = self.fuse_layers
        for i, layers in enumerate(rows):
            parts = [layer(x) for layer, x in zip(layers, xs, strict=True)]
            parts = [interpolate(y, scale_factor=2.0 ** (j - i)) if j > i else y for j, y in enumerate(parts)]
            fused.append(relu(torch.stack(parts).sum(0)))
        return fused


class HRNet(nn.Module):
    """HRNetV2-W48 (Wang et al. 2020), without a head: 65,325,120 parameters.

    Args:
        width: Factor on all numbers of channels.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        stem, first = scaled(STEM, width), scaled(FIRST, width)
        channels = tuple(scaled(number, width) for number in CHANNELS)
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem)
        self.conv2, self.bn2 = nn.Conv2d(stem, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem)
        wide = first * EXPANSION
        blocks = [ResidualBlock(stem if number == 0 else wide, first, EXPANSION) for number in range(BLOCKS)]
        self.layer1 = nn.Sequential(*blocks)
        self.transitions = nn.ModuleList([nn.ModuleList([conv(wide, channels[0]), conv(wide, channels[1], stride=2)])])
        for high, low in itertools.pairwise(channels[1:]):
            self.transitions.append(nn.ModuleList([conv(high, low, stride=2)]))
        self.stages = nn.ModuleList(
            nn.Sequential(*(HighResolutionModule(channels[:branches]) for _ in range(modules)))
            for branches, modules in enumerate(MODULES, start=2)
        )
        self.out_channels = sum(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of all branches at the highest resolution, `(B, 3, H, W)` to `(B, 720, H / 4, W / 4)`."""
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer1(relu(self.bn2(self.conv2(x))))
        transitions: Any = self.transitions
        first, *rest = transitions
        xs = self.stages[0]([transition(x) for transition in first])
        for transition, stage in zip(rest, self.stages[1:], strict=True):
            xs = stage([*xs, transition[0](xs[-1])])
        side = xs[0].shape[-2:]
        return torch.cat([xs[0], *(interpolate(y, size=side, mode="bilinear") for y in xs[1:])], dim=1)
