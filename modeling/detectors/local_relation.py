"""Local-relation: how much each pair of places in a face is alike, in colours and high frequencies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits, interpolate, normalize, relu

from .dct import band_filters, dct_matrix
from .detector import Detector, DetectorConfig, DetectorOutput, scaled
from .efficientnet_b4 import B4Features, draw_weights

STAGES = (3, 5, 7)  # stages behind which both streams attend to each other, and whose features are compared
PASSED = 0.33  # antidiagonal at which the high-pass filter begins, as a share of the side
PATCHES = 4  # a side, at most one for each cell of the last features
REDUCTION = 32  # factor between the side of the image and that of the last features
DECODER = (256, 256, 128, 64)  # channels of the blocks that segment; each doubles the side
HIDDEN = 128  # units of the classifier
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in the grey value (ITU-R BT.601)


def patches_a_side(image_size: int) -> int:
    """Number of patches that are compared, a side."""
    return min(PATCHES, image_size // REDUCTION)


@strict
class LocalRelationConfig(DetectorConfig):
    """Configuration of a [`LocalRelation`]; the side of its images is 64, 96 or a multiple of 128."""

    model_type = "local_relation"

    def validate_architecture(self):
        """Check the fields (called by `strict`)."""
        super().validate_architecture()
        if self.image_size not in (64, 96) and self.image_size % (REDUCTION * PATCHES):
            raise ValueError(f"`image_size` must be 64, 96 or a multiple of 128, found {self.image_size}.")


@dataclass
class LocalRelationOutput(DetectorOutput):
    """Output of a `LocalRelation`.

    Attributes:
        similarity: Of each pair of patches, in [0, 1], shape `(B, patches, patches)`.
        segmentation: Logits of forged pixels, shape `(B, image_size, image_size)`; in training.
    """

    similarity: torch.Tensor | None = None
    segmentation: torch.Tensor | None = None


class HighFrequencies(nn.Module):
    """High frequencies of the grey values: ``D^-1(f * D(grey))`` with the cosine transform D and a high-pass filter f.

    Args:
        size: Side of the images.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dct = nn.Buffer(dct_matrix(size))
        self.filter = nn.Buffer(band_filters(size, [PASSED * size])[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images `(B, 3, size, size)` to `(B, 1, size, size)`."""
        grey = sum(weight * x[:, number : number + 1] for number, weight in enumerate(GREY))
        return self.dct.T @ (self.filter * (self.dct @ grey @ self.dct.T)) @ self.dct


class RGBFrequencyAttention(nn.Module):
    """RGB-frequency attention module (RFAM): ``A = sigmoid(conv(relu(norm(conv([U_rgb, U_freq])))))``.

    A has a map for each stream, by which its features are multiplied.

    Args:
        channels: Channels of each stream.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(2 * channels, channels, 1), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, 2, 3, padding=1)

    def forward(self, colours: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams, each `(B, channels, h, w)`, under their maps."""
        both = torch.cat([colours, frequencies], dim=1)
        attention = self.conv2(relu(self.norm(self.conv1(both)))).sigmoid()
        return colours * attention[:, :1], frequencies * attention[:, 1:]


def similarity_of(features: torch.Tensor, count: int) -> torch.Tensor:
    """``(1 + cos(p_i, p_j)) / 2`` of the `count` x `count` patches p of features `(B, C, h, w)`.

    Returns:
        Shape `(B, count^2, count^2)`; patches are row by row.
    """
    x = features.float().unflatten(3, (count, -1)).unflatten(2, (count, -1))  # (B, C, rows, height, columns, width)
    patches = normalize(x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), dim=-1)
    return (1 + patches @ patches.transpose(1, 2)) / 2


def similarity_of_masks(forged: torch.Tensor, count: int) -> torch.Tensor:
    """What the similarity ought to be: ``1 - |m_i - m_j|`` with the share m_i of patch i that was forged.

    Args:
        forged: Share of each pixel that was forged, shape `(B, H, W)`.
        count: Patches a side.

    Returns:
        Shape `(B, count^2, count^2)`.
    """
    shares = adaptive_avg_pool2d(forged[:, None], (count, count)).flatten(1)
    return 1 - (shares[:, :, None] - shares[:, None, :]).abs()


def off_diagonal(x: torch.Tensor) -> torch.Tensor:
    """All but the diagonal of matrices `(B, n, n)`, row by row, `(B, n (n - 1))`."""
    count = x.shape[-1]
    return x.flatten(1)[:, 1:].unflatten(1, (count - 1, count + 1))[:, :, :-1].flatten(1)


def decoder(inputs: int, width: float) -> nn.Sequential:
    """Blocks that double the side, each with two convolutions, instance normalisation and ReLU; 16 times in all."""
    layers: list[nn.Module] = []
    for channels in (scaled(number, width) for number in DECODER):
        layers.append(nn.Upsample(scale_factor=2))
        for before in (inputs, channels):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.InstanceNorm2d(channels), nn.ReLU()]
        inputs = channels
    return nn.Sequential(*layers, nn.Conv2d(inputs, 1, 1, bias=False))


class LocalRelation(Detector):
    """Local relation learning (Chen et al. 2021) on two EfficientNet-B4, of colours and of high frequencies.

    Behind three stages an attention module weighs both streams. The multi-scale patch similarity module (MPSM) joins
    the sums of both streams at these stages, cuts them into 4 x 4 patches, and compares each pair; the similarities
    decide. The loss is ``L_cls + L_sim + L_seg``: L_sim is the squared error of the similarities, whose aim is 1 less
    the difference of the patches' forged shares; L_seg is the cross-entropy of each pixel, forged or not. Both are left
    out where the mask is unknown.

    As in DeepfakeBench's implementation, not compared with the paper: EfficientNet-B4 as network, grey values, stages,
    grid, layers of attention and decoder, weights of 1. Ours: all three inputs of the second network hold the grey
    values, so that it starts from pre-trained weights, too; the grid is smaller below 128 pixels.

    48,600,848 parameters; no published count is known to us; two EfficientNet-B4 without classifier have 35,097,232.
    """

    config_class = LocalRelationConfig
    needs_masks = True

    def __init__(self, config: LocalRelationConfig) -> None:
        super().__init__(config)
        self.high_frequencies = HighFrequencies(config.image_size)
        self.colours, self.frequencies = (B4Features(config.image_size, config.width) for _ in range(2))
        sizes = [*(self.colours.channels[number - 1] for number in STAGES[:-1]), self.colours.out_channels]
        self.attentions = nn.ModuleList(RGBFrequencyAttention(number) for number in sizes)
        self.count = patches_a_side(config.image_size)
        self.decoder = decoder(sum(sizes), config.width)
        pairs = self.count**2 * (self.count**2 - 1)
        self.hidden, self.dropout = nn.Linear(pairs, HIDDEN), nn.Dropout(0.2)
        self.classifier = nn.Linear(HIDDEN, 2)
        self.post_init()
        draw_weights(self.colours)
        draw_weights(self.frequencies)

    @property
    def streams(self) -> tuple[B4Features, B4Features]:
        """Networks of colours and of high frequencies."""
        return self.colours, self.frequencies

    def classify(self, pixel_values: torch.Tensor) -> LocalRelationOutput:
        """Similarities of all pairs of patches decide; the decoder runs in training alone."""
        high = self.high_frequencies(pixel_values).expand_as(pixel_values)
        both = [network.stem(x) for network, x in zip(self.streams, (pixel_values, high), strict=True)]
        joined, done = [], 0
        for attention, end in zip(self.attentions, STAGES, strict=True):
            for stream, network in enumerate(self.streams):
                for number in range(done + 1, end + 1):
                    both[stream] = network.stage(both[stream], number)
                if end == STAGES[-1]:
                    both[stream] = network.tail(both[stream])
            both, done = list(attention(*both)), end
            joined.append(both[0] + both[1])
        size = joined[-1].shape[-2:]
        features = torch.cat([interpolate(x, size=size) for x in joined], dim=1)
        similarity = similarity_of(features, self.count)
        logits = self.classifier(self.dropout(relu(self.hidden(off_diagonal(similarity)))))
        segmentation = None
        if self.training:
            segmentation = interpolate(self.decoder(features), scale_factor=2.0, mode="bilinear")[:, 0]
        return LocalRelationOutput(logits=logits, similarity=similarity, segmentation=segmentation)

    def auxiliary_losses(
        self,
        output: LocalRelationOutput,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        forged: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """L_sim and, in training, L_seg; 0 for an image without a known mask."""
        assert output.similarity is not None
        forged = -torch.ones_like(pixel_values[:, 0]) if forged is None else forged
        known = (forged >= 0).flatten(1).all(1)
        aim = similarity_of_masks(forged.clamp(0, 1), self.count)
        losses = {"similarity": (output.similarity - aim).square().mean((1, 2)) * known}
        if output.segmentation is not None:
            of_pixels = binary_cross_entropy_with_logits(
                output.segmentation.float(), forged.clamp(0, 1), reduction="none"
            )
            losses["segmentation"] = of_pixels.mean((1, 2)) * known
        return losses

    def load_backbone(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load a transformers EfficientNet-B4 into both streams."""
        for network in self.streams:
            network.load(tensors)


LocalRelationConfig.register_for_auto_class()
LocalRelation.register_for_auto_class("AutoModelForImageClassification")
