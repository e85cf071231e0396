"""Two streams of colours and of high frequencies, from the kernels of the spatial rich model (SRM)."""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import conv2d, cross_entropy, normalize, one_hot, relu

from .detector import Detector, DetectorConfig, DetectorOutput, scaled
from .xception import Xception

# The three kernels of Fridrich & Kodovsky (2012) that forensics commonly uses, with their divisors.
KERNELS = (
    (((0, 0, 0, 0, 0), (0, -1, 2, -1, 0), (0, 2, -4, 2, 0), (0, -1, 2, -1, 0), (0, 0, 0, 0, 0)), 4),
    (((-1, 2, -2, 2, -1), (2, -6, 8, -6, 2), (-2, 8, -12, 8, -2), (2, -6, 8, -6, 2), (-1, 2, -2, 2, -1)), 12),
    (((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 1, -2, 1, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0)), 2),
)
LIMIT = 3.0  # residuals are cut off at -3 and 3
ENTRY, MIDDLE = 3, 11  # blocks with guidance behind each of them; block with attention behind it
REDUCTION = 8  # factor between the channels and those of the keys
FUSED = 1024  # channels of the fused features
SCALE, MARGIN = 30.0, 0.35  # of the additive-margin softmax


class Residuals(nn.Module):
    """High frequencies of images or features by the three kernels.

    Of images: one residual a kernel, summed over the colours. Of features: the residuals of each channel, mixed by a
    1 x 1 convolution.

    Args:
        channels: Channels of the features; None for images.
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        kernels = [torch.tensor(rows, dtype=torch.float32) / divisor for rows, divisor in KERNELS]
        self.kernels = nn.Buffer(torch.stack(kernels)[:, None])  # (3, 1, 5, 5)
        self.mix = None if channels is None else nn.Conv2d(len(KERNELS) * channels, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(B, 3, H, W)` or `(B, channels, H, W)` to the same shape."""
        channels = x.shape[1]
        if self.mix is None:
            kernels = self.kernels.expand(-1, channels, -1, -1)
            return conv2d(x, kernels, padding=2).clamp(-LIMIT, LIMIT)
        residuals = conv2d(x, self.kernels.repeat(channels, 1, 1, 1), padding=2, groups=channels)
        return self.mix(residuals.clamp(-LIMIT, LIMIT))


class ResidualGuidedAttention(nn.Module):
    """Spatial attention on colours f by residuals h: ``M = sigmoid(conv([mean_c(h); max_c(h)]))``, ``f' = f + f M``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, colours: torch.Tensor, residuals: torch.Tensor) -> torch.Tensor:
        """Guide features `(B, C, h, w)` by residual features of that shape."""
        planes = torch.cat([residuals.mean(1, keepdim=True), residuals.amax(1, keepdim=True)], dim=1)
        return colours + colours * torch.sigmoid(self.conv(planes))


class DualCrossModalityAttention(nn.Module):
    """Each stream adds what corresponds to it in the other one.

    With keys K of both streams, ``C = K_c^T W K_h`` compares every position of the colours with every one of the high
    frequencies; ``c' = c + g_c V_h softmax(C)^T`` over the positions of h, and ``h' = h + g_h V_c softmax(C^T)^T``. The
    gains g start at 0.

    Args:
        channels: Channels of each stream.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // REDUCTION, 1)
        self.keys = nn.ModuleList(nn.Conv2d(channels, inner, 1, bias=False) for _ in range(2))
        self.values = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.compare = nn.Linear(inner, inner, bias=False)
        self.gains = nn.Parameter(torch.zeros(2))

    def forward(self, colours: torch.Tensor, residuals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams, `(B, C, h, w)`, with their additions."""
        streams = (colours, residuals)
        keys = [key(stream).flatten(2).mT for key, stream in zip(self.keys, streams, strict=True)]  # (B, hw, inner)
        values = [value(stream).flatten(2).mT for value, stream in zip(self.values, streams, strict=True)]
        scores = self.compare(keys[0]) @ keys[1].mT / keys[0].shape[-1] ** 0.5
        seen = [scores.softmax(-1) @ values[1], scores.mT.softmax(-1) @ values[0]]
        added = [part.mT.reshape(stream.shape) for part, stream in zip(seen, streams, strict=True)]
        return colours + self.gains[0] * added[0], residuals + self.gains[1] * added[1]


@strict
class SRMConfig(DetectorConfig):
    """Configuration of an [`SRMDetector`]."""

    model_type = "srm"

    image_size: int = 299


class SRMDetector(Detector):
    """Two-stream network on high-frequency features (Luo et al. 2021, "Generalizing Face Forgery Detection").

    An Xception on colours and one on SRM residuals. In the entry flow the residuals of the colours' features join the
    second stream on several scales, and guide the first one by spatial attention; behind the middle flow both attend to
    each other; the last features are fused by a convolution and channel attention. The loss is the additive-margin
    softmax, ``-log softmax(s (cos_y - m))``: here its difference from the cross-entropy of the logits ``s cos`` is a
    loss of its own. Scale, margin and the forms of the small layers are ours.

    47,405,012 parameters; no published count is known to us; two Xceptions without classifier have 41,613,904.
    """

    config_class = SRMConfig

    def __init__(self, config: SRMConfig) -> None:
        super().__init__(config)
        network = self.colours = Xception(config.width)
        self.high = Xception(config.width)
        self.residuals = Residuals()
        self.feature_residuals = nn.ModuleList(Residuals(channels) for channels in network.entry_channels[:-1])
        self.guides = nn.ModuleList(ResidualGuidedAttention() for _ in range(ENTRY))
        self.attention = DualCrossModalityAttention(network.middle_channels)
        fused = scaled(FUSED, config.width)
        self.fusion, self.fusion_norm = nn.Conv2d(2 * network.out_channels, fused, 1, bias=False), nn.BatchNorm2d(fused)
        self.squeeze, self.excite = nn.Linear(fused, max(fused // 16, 1)), nn.Linear(max(fused // 16, 1), fused)
        self.classifier = nn.Linear(fused, 2, bias=False)
        self.post_init()

    def classify(self, pixel_values: torch.Tensor) -> DetectorOutput:
        """Both streams, their fusion, and scaled cosines with the two class vectors."""
        colours, high = self.colours.stem(pixel_values), self.high.stem(self.residuals(pixel_values))
        for number, blocks in enumerate(zip(self.colours.blocks, self.high.blocks, strict=True)):
            if number < len(self.feature_residuals):
                high = high + self.feature_residuals[number](colours)
            colours, high = blocks[0](colours), blocks[1](high)
            if number < ENTRY:
                colours = self.guides[number](colours, high)
            if number + 1 == MIDDLE:
                colours, high = self.attention(colours, high)
        fused = relu(
            self.fusion_norm(self.fusion(torch.cat([self.colours.tail(colours), self.high.tail(high)], dim=1)))
        )
        shares = torch.sigmoid(self.excite(relu(self.squeeze(fused.mean((2, 3))))))
        features = (fused + fused * shares[..., None, None]).mean((2, 3))
        cosines = normalize(features.float(), dim=-1) @ normalize(self.classifier.weight.float(), dim=-1).T
        return DetectorOutput(logits=SCALE * cosines)

    def auxiliary_losses(
        self,
        output: DetectorOutput,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        forged: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """What the margin adds to the cross-entropy."""
        assert output.logits is not None
        shifted = output.logits - SCALE * MARGIN * one_hot(labels, 2)
        with_margin, without = (cross_entropy(x, labels, reduction="none") for x in (shifted, output.logits))
        return {"margin": with_margin - without}

    def load_backbone(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load timm's `legacy_xception` into both streams."""
        self.colours.load_timm(tensors)
        self.high.load_timm(tensors)


SRMConfig.register_for_auto_class()
SRMDetector.register_for_auto_class("AutoModelForImageClassification")
