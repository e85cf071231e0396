"""M2TR: attention between patches of several sizes, joined with learned filters of the spectrum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    interpolate,
    leaky_relu,
    normalize,
    scaled_dot_product_attention,
)

from .detector import Detector, DetectorConfig, DetectorOutput
from .efficientnet_b4 import B4Features, draw_weights

DEPTH = 4  # number of layers
PATCHES = (1, 2, 4, 8)  # patches a side of each head
STAGE, STAGES = 2, 7  # stage behind which the layers are; number of stages
SEGMENTATION, CONTRAST = 1.0, 0.001  # weights lambda of the losses
SLOPE = 0.2  # of the leaky ReLUs
REDUCTION = 32  # the side of the image is a multiple of it: four times as large as the features, of 8 patches a side


@strict
class M2TRConfig(DetectorConfig):
    """Configuration of an [`M2TR`]; the side of its images is a multiple of 32."""

    model_type = "m2tr"

    image_size: int = 320

    def validate_architecture(self):
        """Check the fields (called by `strict`)."""
        super().validate_architecture()
        if self.image_size % REDUCTION:
            raise ValueError(f"`image_size` must be a multiple of {REDUCTION}, found {self.image_size}.")


@dataclass
class M2TROutput(DetectorOutput):
    """Output of an `M2TR`.

    Attributes:
        segmentation: Logits of forged pixels, shape `(B, image_size, image_size)`.
        features: What the classifier reads, shape `(B, channels)`.
    """

    segmentation: torch.Tensor | None = None
    features: torch.Tensor | None = None


class ConvBlock(nn.Module):
    """Convolution that keeps the side, batch normalisation and leaky ReLU."""

    def __init__(self, channels: int, side: int = 3, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, side, padding=side // 2 * dilation, dilation=dilation)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features `(B, channels, H, W)` to the same shape."""
        return leaky_relu(self.norm(self.conv(x)), SLOPE)


def feed_forward(channels: int) -> nn.Sequential:
    """The convolutions behind attention and filter."""
    return nn.Sequential(ConvBlock(channels, dilation=2), ConvBlock(channels))


def patches_of(x: torch.Tensor, count: int) -> torch.Tensor:
    """Cut `(B, C, H, W)` into `count` x `count` patches, `(B, count^2, C H W / count^2)`."""
    x = x.unflatten(3, (count, -1)).unflatten(2, (count, -1))  # (B, C, rows, height, columns, width)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def joined(patches: torch.Tensor, count: int, channels: int) -> torch.Tensor:
    """Put patches together again: the inverse of `patches_of`."""
    side = int((patches.shape[-1] // channels) ** 0.5)
    x = patches.unflatten(1, (count, count)).unflatten(3, (channels, side, side))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class MultiScaleAttention(nn.Module):
    """Each head has its share of the channels and compares patches of its own size: ``softmax(Q K^T / sqrt(d)) V``.

    Args:
        channels: Channels of the features, a multiple of the number of heads.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.output, self.feed_forward = ConvBlock(channels), feed_forward(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features `(B, channels, H, W)` to the same shape."""
        parts = [conv(x).chunk(len(PATCHES), dim=1) for conv in (self.query, self.key, self.value)]
        seen = []
        for count, *head in zip(PATCHES, *parts, strict=True):
            # The kernels that save memory take four dimensions.
            query, key, value = (patches_of(part, count)[:, None] for part in head)
            values = scaled_dot_product_attention(query, key, value)[:, 0]
            seen.append(joined(values, count, head[0].shape[1]))
        x = x + self.output(torch.cat(seen, dim=1))
        return x + self.feed_forward(x)


class FrequencyFilter(nn.Module):
    """Learned filter of the spectrum: ``x + g(F^-1(W * F(x)))`` with a complex weight for each frequency and channel.

    F is the orthonormal Fourier transform of real features, of which half of the columns are enough. It is a product
    with the cosines and sines of all frequencies, which every runtime has; complex numbers few have.

    Args:
        channels: Channels of the features.
        side: Their side in pixels, even.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        half = side // 2 + 1
        self.weight = nn.Parameter(0.02 * torch.randn(channels, side, half, 2))
        angles = 2 * torch.pi * torch.outer(torch.arange(side), torch.arange(side)).remainder(side) / side
        self.waves = nn.Buffer(torch.stack([angles.cos(), angles.sin()]) / side**0.5)
        # The columns that are left out are the conjugates of all but the first and the last.
        self.times = nn.Buffer(torch.tensor([1.0, *[2.0] * (half - 2), 1.0]))
        self.feed_forward = feed_forward(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features `(B, channels, side, side)` to the same shape."""
        cosine, sine = self.waves.to(x)
        columns = [wave[: len(self.times)] for wave in (cosine, sine)]
        real, imaginary = x @ columns[0].T, -x @ columns[1].T
        real, imaginary = cosine @ real + sine @ imaginary, cosine @ imaginary - sine @ real
        a, b = self.weight.to(x).unbind(-1)
        real, imaginary = a * real - b * imaginary, a * imaginary + b * real
        real, imaginary = cosine @ real - sine @ imaginary, cosine @ imaginary + sine @ real
        times = self.times.to(x)
        return x + self.feed_forward((times * real) @ columns[0] - (times * imaginary) @ columns[1])


class CrossModalityFusion(nn.Module):
    """Positions of the image attend to those of the spectrum: ``x + g(softmax(Q_x K_f^T / sqrt(d)) V_f)``.

    Args:
        channels: Channels of each.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.output = ConvBlock(channels, side=1)

    def forward(self, x: torch.Tensor, filtered: torch.Tensor) -> torch.Tensor:
        """Combine features `(B, channels, H, W)` of both."""
        query, key, value = self.query(x), self.key(filtered), self.value(filtered)
        seen = scaled_dot_product_attention(*(part.flatten(2).mT[:, None] for part in (query, key, value)))
        return x + self.output(seen[:, 0].mT.reshape(x.shape))


def contrast(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cosine distance to the mean of the reals: its mean over reals minus that over fakes (L_con).

    Args:
        features: Shape `(B, channels)`.
        labels: 0 real, 1 fake, shape `(B,)`.

    Returns:
        Shape `(B,)`, whose mean is the loss; 0 in a batch of one class.
    """
    real = (labels == 0).to(features)
    counts = real.sum(), (1 - real).sum()
    centre = (features * real[:, None]).sum(0) / counts[0].clamp(min=1)
    distances = 1 - normalize(features, dim=-1) @ normalize(centre, dim=-1)
    shares = real / counts[0].clamp(min=1) - (1 - real) / counts[1].clamp(min=1)
    return len(labels) * shares * distances * (counts[0] * counts[1] > 0)


class M2TR(Detector):
    """Multi-modal multi-scale transformer (Wang et al. 2022) inside EfficientNet-B4.

    Behind stage 2, four layers each apply attention between patches of four sizes, filter the spectrum of the result,
    and join both. The other stages classify; a small decoder segments. The loss is ``L_cls + L_seg + 0.001 L_con``:
    L_seg is the cross-entropy of each pixel, forged or not, left out where the mask is unknown; L_con pulls reals to
    their mean and pushes fakes away. The two weights and the form of L_con are from memory; the authors' code has none.

    18,615,035 parameters; no published count is known to us; EfficientNet-B4 without classifier has 17,548,616.
    """

    config_class = M2TRConfig
    needs_masks = True

    def __init__(self, config: M2TRConfig) -> None:
        super().__init__(config)
        self.features = B4Features(config.image_size, config.width)
        channels, side = self.features.channels[STAGE - 1], config.image_size // 4
        self.attentions = nn.ModuleList(MultiScaleAttention(channels) for _ in range(DEPTH))
        self.filters = nn.ModuleList(FrequencyFilter(channels, side) for _ in range(DEPTH))
        self.fusions = nn.ModuleList(CrossModalityFusion(channels) for _ in range(DEPTH))
        half = channels // 2
        self.decoder1, self.decoder2 = nn.Conv2d(channels, half, 3, padding=1), nn.Conv2d(half, half, 3, padding=1)
        self.mask = nn.Conv2d(half, 1, 3, padding=1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(self.features.out_channels, 2)
        self.post_init()
        draw_weights(self.features)
        nn.init.normal_(self.mask.weight, std=0.001)  # the masks start at 0.5

    def classify(self, pixel_values: torch.Tensor) -> M2TROutput:
        """Two stages, the layers, and the other stages; the decoder runs in training alone."""
        x = self.features.stem(pixel_values)
        for number in range(1, STAGE + 1):
            x = self.features.stage(x, number)
        for attention, spectrum, fusion in zip(self.attentions, self.filters, self.fusions, strict=True):
            x = attention(x)
            x = fusion(x, spectrum(x))
        segmentation = self.segment(x) if self.training else None
        for number in range(STAGE + 1, STAGES + 1):
            x = self.features.stage(x, number)
        features = self.features.tail(x).mean((2, 3))
        return M2TROutput(logits=self.classifier(self.dropout(features)), segmentation=segmentation, features=features)

    def segment(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of forged pixels `(B, H, W)` from the layers' features `(B, channels, H / 4, W / 4)`."""
        for conv in (self.decoder1, self.decoder2):
            x = leaky_relu(conv(interpolate(x, scale_factor=2.0, mode="bilinear")), SLOPE)
        return self.mask(x)[:, 0]

    def auxiliary_losses(
        self,
        output: M2TROutput,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        forged: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """L_seg in training, and L_con."""
        assert output.features is not None
        losses = {"contrast": CONTRAST * contrast(output.features.float(), labels)}
        if output.segmentation is not None:
            forged = -torch.ones_like(pixel_values[:, 0]) if forged is None else forged
            of_pixels = binary_cross_entropy_with_logits(
                output.segmentation.float(), forged.clamp(0, 1), reduction="none"
            )
            losses["segmentation"] = SEGMENTATION * (of_pixels * (forged >= 0)).mean((1, 2))
        return losses

    def load_backbone(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load a transformers EfficientNet-B4."""
        self.features.load(tensors)


M2TRConfig.register_for_auto_class()
M2TR.register_for_auto_class("AutoModelForImageClassification")
