"""F3-Net: two Xceptions on frequency-aware image components and on local frequency statistics."""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import conv2d, pad

from .dct import band_filters, dct_matrix
from .detector import Detector, DetectorConfig, DetectorOutput
from .xception import Xception

SHARES = (1 / 16, 1 / 8)  # ends of the low and middle bands of the decomposition, as shares of all frequencies
WINDOW, STRIDE, STATISTICS = 10, 2, 6  # side and step of the windows, and number M of their bands
PADDING = 4  # makes the map of windows as large as the first feature map of the other stream
FUSED = (7, 12)  # blocks with cross-attention behind them
REDUCTION = 8  # factor between the channels and those of queries and keys


def squashed(x: torch.Tensor) -> torch.Tensor:
    """``sigma(x) = (1 - exp(-x)) / (1 + exp(-x))``, between -1 and 1."""
    return torch.tanh(x / 2)


class FrequencyAwareDecomposition(nn.Module):
    """Image components of the bands: ``y_i = D^-1(D(x) * (f_base_i + sigma(f_w_i)))`` (Eq. 1).

    The lowest 1/16 of all frequencies, the next 1/16, and the others: below the antidiagonal ``size sqrt(2 s)`` lies a
    share s of them.

    Args:
        size: Side of the images.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dct = nn.Buffer(dct_matrix(size))
        self.base = nn.Buffer(band_filters(size, [size * (2 * share) ** 0.5 for share in SHARES]))
        self.learned = nn.Parameter(0.1 * torch.randn(len(SHARES) + 1, size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images `(B, 3, size, size)` to their components, band by band, `(B, 9, size, size)`."""
        spectrum = self.dct @ x @ self.dct.T
        filters = (self.base + squashed(self.learned))[:, None]
        return (self.dct.T @ (spectrum[:, None] * filters) @ self.dct).flatten(1, 2)


class LocalFrequencyStatistics(nn.Module):
    """Statistics of windows p: ``q_i = log10 ||D(p) * (h_base_i + sigma(h_w_i))||_1`` (Eq. 2).

    The norm is over frequencies and colours. Zeros around the image and a small addend keep the logarithm finite.
    """

    def __init__(self) -> None:
        super().__init__()
        dct = dct_matrix(WINDOW)
        self.basis = nn.Buffer(torch.einsum("ui,vj->uvij", dct, dct).reshape(-1, 1, WINDOW, WINDOW))
        ends = [(2 * WINDOW - 1) * number / STATISTICS for number in range(1, STATISTICS)]
        self.base = nn.Buffer(band_filters(WINDOW, ends))
        self.learned = nn.Parameter(0.1 * torch.randn(STATISTICS, WINDOW, WINDOW))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images `(B, 3, H, H)` to statistics `(B, 6, h, h)` with ``h = (H - 3) // 2 + 1``."""
        side = (x.shape[-1] - 3) // STRIDE + 1
        framed = pad(x, (PADDING,) * 4).flatten(0, 1)[:, None]
        sizes = conv2d(framed, self.basis, stride=STRIDE)[..., :side, :side].abs()
        sizes = sizes.unflatten(0, x.shape[:2]).sum(1)  # |D(p)| of all colours, (B, 100, h, h)
        filters = (self.base + squashed(self.learned)).abs().flatten(1)
        return torch.log10(torch.einsum("mf,bfij->bmij", filters, sizes) + 1e-6)


class CrossAttention(nn.Module):
    """Attention between the positions of both streams that adds to each what the other one has there (section 3.3).

    The paper draws the module (Fig. 6) and gives no equation. Here queries and keys are maps of both streams, A =
    softmax(Q^T K), and each stream y becomes ``y + g z A^T`` with the other stream z and a gain g per channel that
    starts at 0.

    Args:
        channels: Channels of each stream.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // REDUCTION, 1)
        self.query, self.key = (nn.Conv2d(2 * channels, inner, 1, bias=False) for _ in range(2))
        self.gains = nn.Parameter(torch.zeros(2, channels, 1, 1))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams, `(B, C, h, w)`, each with its addition."""
        both = torch.cat([first, second], dim=1)
        query, key = self.query(both).flatten(2), self.key(both).flatten(2)
        attention = (query.mT @ key / query.shape[1] ** 0.5).softmax(-1)
        seen = [(stream.flatten(2) @ attention.mT).view_as(stream) for stream in (second, first)]
        return first + self.gains[0] * seen[0], second + self.gains[1] * seen[1]


@strict
class F3NetConfig(DetectorConfig):
    """Configuration of an [`F3Net`]."""

    model_type = "f3net"

    image_size: int = 299


class F3Net(Detector):
    """F3-Net (Qian et al. 2020): frequency-aware decomposition, local frequency statistics, cross-attention.

    Two Xceptions; the second one's first convolution has 6 channels and stride 1. Cross-attention is behind blocks 7
    and 12; the classifier reads the means of both last feature maps.

    42,686,277 parameters. No published count is known to us; two Xceptions without classifier have 41,613,904.
    """

    config_class = F3NetConfig

    def __init__(self, config: F3NetConfig) -> None:
        super().__init__(config)
        self.decomposition = FrequencyAwareDecomposition(config.image_size)
        self.statistics = LocalFrequencyStatistics()
        components = 3 * (len(SHARES) + 1)
        self.first, self.second = Xception(config.width, components), Xception(config.width, STATISTICS, stride=1)
        channels = (self.first.middle_channels, self.first.exit_channels)
        self.attentions = nn.ModuleList(CrossAttention(number) for number in channels)
        self.classifier = nn.Linear(2 * self.first.out_channels, 2)
        self.post_init()

    def classify(self, pixel_values: torch.Tensor) -> DetectorOutput:
        """Both streams up to the two linear scores."""
        first = self.first.stem(self.decomposition(pixel_values))
        second = self.second.stem(self.statistics(pixel_values))
        attentions = dict(zip(FUSED, self.attentions, strict=True))
        for number, blocks in enumerate(zip(self.first.blocks, self.second.blocks, strict=True), start=1):
            first, second = blocks[0](first), blocks[1](second)
            if number in attentions:
                first, second = attentions[number](first, second)
        ends = [self.first.tail(first), self.second.tail(second)]
        return DetectorOutput(logits=self.classifier(torch.cat(ends, dim=1).mean((2, 3))))

    def load_backbone(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load timm's `legacy_xception` into both streams.

        The components of an image sum to it, so repeated weights of the first convolution give the response to the
        image. The statistics are no colours: their first convolution keeps its random weights.
        """
        key, bands = "conv1.weight", len(SHARES) + 1
        first = {key: tensors[key].repeat(1, bands, 1, 1)} if key in tensors else {}
        self.first.load_timm(tensors | first)
        self.second.load_timm(tensors | {key: self.second.conv1.weight.detach()})


F3NetConfig.register_for_auto_class()
F3Net.register_for_auto_class("AutoModelForImageClassification")
