"""Xception as a detector."""

from __future__ import annotations

import itertools
import re

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import relu

from .detector import Detector, DetectorConfig, DetectorOutput, scaled

DOWN = (128, 256, 728)  # channels of the three blocks of the entry flow, each of which halves the side
MIDDLE = 8  # blocks of the middle flow
EXIT = (1024, 1536, 2048)


class SeparableConv2d(nn.Module):
    """Depthwise 3 x 3 convolution, then a pointwise one: ``y_o = sum_i p_oi (d_i * x_i)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features `(B, inputs, H, W)` to `(B, outputs, H, W)`."""
        return self.pointwise(self.depthwise(x))


class XceptionBlock(nn.Module):
    """Separable convolutions beside a shortcut: the identity, or a strided 1 x 1 convolution if the side is halved.

    Args:
        channels: Input channels, then the output channels of each separable convolution.
        halves: Whether the block halves the side, by max pooling.
        first_relu: Whether the first convolution has a ReLU before it.
    """

    def __init__(self, channels: tuple[int, ...], halves: bool, first_relu: bool = True) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.convs = nn.ModuleList(SeparableConv2d(*pair) for pair in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _, outputs in pairs)
        self.first_relu = first_relu
        self.pool = nn.MaxPool2d(3, 2, 1) if halves else None
        if halves:
            self.skip = nn.Conv2d(channels[0], channels[-1], 1, stride=2, bias=False)
            self.skip_norm = nn.BatchNorm2d(channels[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features `(B, C, H, W)` to `(B, C', H, W)` or `(B, C', ceil(H / 2), ceil(W / 2))`."""
        y = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(relu(y) if number or self.first_relu else y))
        if self.pool is None:
            return x + y
        return self.skip_norm(self.skip(x)) + self.pool(y)


class Xception(nn.Module):
    """The convolutional network of Chollet (2017), Fig. 5, without its classifier: 20,806,952 parameters.

    Args:
        width: Factor on all numbers of channels.
        channels: Channels of the image.
        stride: Stride of the first convolution; with 1 it is padded and keeps the side.
    """

    def __init__(self, width: float = 1.0, channels: int = 3, stride: int = 2) -> None:
        super().__init__()
        stem = scaled(32, width), scaled(64, width)
        down = [stem[1], *(scaled(number, width) for number in DOWN)]
        ends = [scaled(number, width) for number in EXIT]
        self.conv1, self.norm1 = (
            nn.Conv2d(channels, stem[0], 3, stride, 2 - stride, bias=False),
            nn.BatchNorm2d(stem[0]),
        )
        self.conv2, self.norm2 = nn.Conv2d(stem[0], stem[1], 3, bias=False), nn.BatchNorm2d(stem[1])
        entry = [XceptionBlock((down[i], down[i + 1], down[i + 1]), True, first_relu=i > 0) for i in range(len(DOWN))]
        middle = [XceptionBlock((down[-1],) * 4, False) for _ in range(MIDDLE)]
        self.blocks = nn.ModuleList([*entry, *middle, XceptionBlock((down[-1], down[-1], ends[0]), True)])
        self.conv3, self.norm3 = SeparableConv2d(ends[0], ends[1]), nn.BatchNorm2d(ends[1])
        self.conv4, self.norm4 = SeparableConv2d(ends[1], ends[2]), nn.BatchNorm2d(ends[2])
        self.middle_channels, self.exit_channels, self.out_channels = down[-1], ends[0], ends[2]
        self.entry_channels = tuple(down)

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """The two convolutions before the blocks: `(B, 3, H, W)` to about `(B, 64, H / 2, W / 2)`."""
        return relu(self.norm2(self.conv2(relu(self.norm1(self.conv1(x))))))

    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """The two convolutions after the blocks: `(B, 1024, h, w)` to `(B, 2048, h, w)`."""
        return relu(self.norm4(self.conv4(relu(self.norm3(self.conv3(x))))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Last feature map of images `(B, 3, H, W)`, shape `(B, 2048, h, w)`; `h` is about `H / 32`."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.tail(x)

    def load_timm(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load the weights of timm's `legacy_xception`, by its names.

        Args:
            tensors: Content of its safetensors file; the classifier is not used.

        Raises:
            ValueError: If a weight is missing or has another shape.
        """
        own = self.state_dict()
        found = {name: tensors[key] for name in own if (key := timm_name(name)) in tensors}
        wrong = [
            name
            for name, tensor in own.items()
            if not name.endswith("num_batches_tracked") and (name not in found or found[name].shape != tensor.shape)
        ]
        if wrong:
            raise ValueError(f"no weights of timm's legacy_xception: {', '.join(map(timm_name, wrong[:3]))}.")
        self.load_state_dict(found, strict=False)


def timm_name(name: str) -> str:
    """Name of a parameter of `Xception` in timm's `legacy_xception`."""
    name = re.sub(r"^norm(\d)", r"bn\1", name).replace("depthwise", "conv1")
    block = re.match(r"blocks\.(\d+)\.(skip_norm|skip|convs|norms)\.(?:(\d+)\.)?(.*)", name)
    if block is None:
        return name
    number, part, place, rest = int(block[1]), block[2], int(block[3] or 0), block[4]
    if part.startswith("skip"):
        return f"block{number + 1}.{part.replace('_norm', 'bn')}.{rest}"
    # ReLU, convolution and normalisation follow each other; the first block has no first ReLU.
    position = 3 * place + (number > 0) + (part == "norms")
    return f"block{number + 1}.rep.{position}.{rest}"


@strict
class XceptionConfig(DetectorConfig):
    """Configuration of an [`XceptionDetector`]."""

    model_type = "xception"

    image_size: int = 299


class XceptionDetector(Detector):
    """Xception (Chollet 2017, Fig. 5) with two classes, the baseline of FaceForensics++ (Rössler et al. 2019).

    20,811,050 parameters; published for 1000 classes: 22,855,952 (Table 3 of the paper), of which 2,049,000 are the
    classifier's.
    """

    config_class = XceptionConfig

    def __init__(self, config: XceptionConfig) -> None:
        super().__init__(config)
        self.network = Xception(config.width)
        self.classifier = nn.Linear(self.network.out_channels, 2)
        self.post_init()

    def classify(self, pixel_values: torch.Tensor) -> DetectorOutput:
        """Linear classifier on the mean of the last feature map."""
        return DetectorOutput(logits=self.classifier(self.network(pixel_values).mean((2, 3))))

    def load_backbone(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load timm's `legacy_xception`."""
        self.network.load_timm(tensors)


XceptionConfig.register_for_auto_class()
XceptionDetector.register_for_auto_class("AutoModelForImageClassification")
