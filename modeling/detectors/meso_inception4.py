"""MesoInception-4, MesoNet's larger network."""

from __future__ import annotations

from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import dropout, leaky_relu, max_pool2d, relu

from .detector import Detector, DetectorConfig, DetectorOutput, scaled

FIRST, SECOND = (1, 4, 4, 2), (2, 4, 4, 2)  # channels of the four branches of each Inception module
CHANNELS = 16  # of the two convolutions after them, and of the hidden layer
POOLING = 32  # factor between the side of the image and that of the last feature map


class MesoInception(nn.Module):
    """The Inception module of MesoNet: a 1 x 1 convolution beside 3 x 3 ones of dilation 1, 2 and 3, concatenated.

    Each of the three starts with a 1 x 1 convolution. All have a ReLU.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the four branches.
    """

    def __init__(self, inputs: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.points = nn.ModuleList(nn.Conv2d(inputs, number, 1) for number in outputs)
        self.dilated = nn.ModuleList(
            nn.Conv2d(number, number, 3, padding=dilation, dilation=dilation)
            for dilation, number in enumerate(outputs[1:], start=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features `(B, inputs, H, W)` to `(B, sum(outputs), H, W)`."""
        points = [relu(point(x)) for point in self.points]
        pairs = zip(self.dilated, points[1:], strict=True)
        return torch.cat([points[0], *(relu(conv(y)) for conv, y in pairs)], dim=1)


@strict
class MesoInception4Config(DetectorConfig):
    """Configuration of a [`MesoInception4`]; the side of its images is a multiple of 32."""

    model_type = "meso_inception4"
    image_mean: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)  # pixels are in [0, 1]
    image_std: ClassVar[tuple[float, float, float]] = (1.0, 1.0, 1.0)

    image_size: int = 256

    def validate_architecture(self):
        """Check the fields (called by `strict`)."""
        super().validate_architecture()
        if self.image_size % POOLING:
            raise ValueError(f"`image_size` must be a multiple of {POOLING}, found {self.image_size}.")


class MesoInception4(Detector):
    """MesoInception-4 (Afchar et al. 2018, sections II.A and II.B, Fig. 3 and 4).

    Two Inception modules, two 5 x 5 convolutions, each with batch normalisation and max pooling, and two dense layers.
    The published network has one sigmoid output z; here the logits are 0 and z, whose softmax is that sigmoid.

    28,615 parameters, as published. The paper trains with the squared error; here it is cross-entropy, as for all rows.
    """

    config_class = MesoInception4Config

    def __init__(self, config: MesoInception4Config) -> None:
        super().__init__(config)
        first, second = (tuple(scaled(number, config.width) for number in branches) for branches in (FIRST, SECOND))
        channels, side = scaled(CHANNELS, config.width), config.image_size // POOLING
        self.inceptions = nn.ModuleList([MesoInception(3, first), MesoInception(sum(first), second)])
        self.convs = nn.ModuleList(nn.Conv2d(inputs, channels, 5, padding=2) for inputs in (sum(second), channels))
        sizes = (sum(first), sum(second), channels, channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(number) for number in sizes)
        self.hidden = nn.Linear(channels * side**2, CHANNELS)
        self.classifier = nn.Linear(CHANNELS, 1)
        self.post_init()

    def classify(self, pixel_values: torch.Tensor) -> DetectorOutput:
        """The four convolutional and two dense layers of Fig. 3."""
        x = pixel_values
        steps = zip((*self.inceptions, *self.convs), self.norms, (2, 2, 2, 4), strict=True)
        for number, (conv, norm, pooling) in enumerate(steps):
            x = conv(x)
            x = max_pool2d(norm(relu(x) if number >= len(self.inceptions) else x), pooling)
        x = leaky_relu(self.hidden(dropout(x.flatten(1), 0.5, self.training)), 0.1)
        score = self.classifier(dropout(x, 0.5, self.training))
        return DetectorOutput(logits=torch.cat([torch.zeros_like(score), score], dim=1))


MesoInception4Config.register_for_auto_class()
MesoInception4.register_for_auto_class("AutoModelForImageClassification")
