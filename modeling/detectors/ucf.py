"""UCF: content apart from fingerprint, and what all forgeries share apart from what one of them has."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, relu

from .detector import Detector, DetectorConfig, DetectorOutput, scaled
from .xception import Xception

FEATURES, HALF = 512, 256  # channels of content and fingerprint, and of the two halves of the fingerprint
DECODER = (256, 128, 64, 32)  # channels of the decoder's stages, each of which doubles the side
SPECIFIC, RECONSTRUCTION, CONTRAST = 0.1, 0.3, 0.05  # weights lambda of the losses
MARGIN = 3.0  # of the contrastive loss


@strict
class UCFConfig(DetectorConfig):
    """Configuration of a [`UCF`].

    Args:
        num_methods: Number of forgery methods to tell apart; None for the number of source domains, each of which
            counts as one.
    """

    model_type = "ucf"

    num_methods: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.num_methods is None:
            self.num_methods = max(len(self.domains), 1)


@dataclass
class UCFOutput(DetectorOutput):
    """Output of a `UCF`; features have the shape `(B, channels, h, w)`.

    Attributes:
        content: Content features.
        fingerprint: Fingerprint features.
        specific: Fingerprint features of one method.
        common: Fingerprint features of all methods.
    """

    content: torch.Tensor | None = None
    fingerprint: torch.Tensor | None = None
    specific: torch.Tensor | None = None
    common: torch.Tensor | None = None


class Encoder(nn.Module):
    """An Xception whose last features are reduced to 512 channels.

    Args:
        width: Factor on all numbers of channels.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        self.network = Xception(width)
        self.reduction = nn.Conv2d(self.network.out_channels, scaled(FEATURES, width), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images `(B, 3, H, W)` to features `(B, 512, h, w)`."""
        return relu(self.reduction(self.network(x)))


class AdaptiveNorm(nn.Module):
    """AdaIN: ``s(f) * (c - mean(c)) / std(c) + m(f)``, with s and m linear in the mean of the fingerprint f.

    Args:
        channels: Channels of the content c.
        condition: Channels of the fingerprint.
    """

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.affine = nn.Linear(condition, 2 * channels)

    def forward(self, content: torch.Tensor, fingerprint: torch.Tensor) -> torch.Tensor:
        """Content `(B, channels, h, w)` in the style of the fingerprint."""
        scale, shift = self.affine(fingerprint.mean((2, 3)))[..., None, None].chunk(2, dim=1)
        return (1 + scale) * self.norm(content) + shift


class Decoder(nn.Module):
    """An image from content and fingerprint: convolutions with AdaIN between enlargements.

    Args:
        width: Factor on all numbers of channels.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        features = scaled(FEATURES, width)
        sizes = [features, *(scaled(number, width) for number in DECODER)]
        pairs = list(itertools.pairwise(sizes))
        self.norms = nn.ModuleList(AdaptiveNorm(inputs, 2 * scaled(HALF, width)) for inputs, _ in pairs)
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairs)
        self.image = nn.Conv2d(sizes[-1], 3, 3, padding=1)

    def forward(self, content: torch.Tensor, fingerprint: torch.Tensor, side: int) -> torch.Tensor:
        """Images `(B, 3, side, side)`, in [-1, 1]."""
        x = content
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = interpolate(relu(conv(norm(x, fingerprint))), scale_factor=2.0, mode="bilinear")
        return torch.tanh(self.image(interpolate(x, size=(side, side), mode="bilinear")))


class UCF(Detector):
    """UCF (Yan et al. 2023): the decision uses only what the forgeries have in common.

    Two Xceptions give content c and fingerprint f of an image. Two heads split f into a specific and a common half; the
    common one decides real or fake, the specific one the method. The loss is ``L_ce + 0.1 L_specific + 0.3 L_rec +
    0.05 L_con`` (section 3.3). In training each image has a partner of the other class of its own data set:

    - L_rec: L1 distance of the image to the decoder's from its own c and f, and from its own c and its partner's f; f
      is its two halves side by side.
    - L_con: ``[margin + |a - p| - |a - n|]_+`` for the pooled halves, with p of the same and n of another class.

    Both are sums over a pair, so twice the mean over images.

    A data set counts as one method, as FF++'s manipulations do when each is a domain. The layers of heads and decoder
    are ours.

    46,529,562 parameters with four methods, of which two Xceptions are 41,613,904; no published count is known to us.
    """

    config_class = UCFConfig

    def __init__(self, config: UCFConfig) -> None:
        super().__init__(config)
        features, half = scaled(FEATURES, config.width), scaled(HALF, config.width)
        self.content, self.fingerprint = Encoder(config.width), Encoder(config.width)
        self.halves = nn.ModuleList(nn.Conv2d(features, half, 1) for _ in range(2))  # specific, common
        self.classifier = nn.Linear(half, 2)
        self.methods = nn.Linear(half, 1 + int(config.num_methods or 1))  # real, then the methods
        self.decoder = Decoder(config.width)
        self.post_init()

    def classify(self, pixel_values: torch.Tensor) -> UCFOutput:
        """Class of the common half; content is computed in training only, for the reconstruction."""
        fingerprint = self.fingerprint(pixel_values)
        specific, common = (relu(half(fingerprint)) for half in self.halves)
        return UCFOutput(
            logits=self.classifier(common.mean((2, 3))),
            content=self.content(pixel_values) if self.training else None,
            fingerprint=fingerprint,
            specific=specific,
            common=common,
        )

    def auxiliary_losses(
        self,
        output: UCFOutput,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        forged: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Losses of the methods, the reconstruction and the contrast."""
        if output.content is None:  # no training
            return {}
        assert output.specific is not None and output.common is not None
        kinds = labels * (1 + domain_ids)  # 0 real, then the method
        specific, common = output.specific.mean((2, 3)), output.common.mean((2, 3))
        partners = partners_of(labels, domain_ids)
        side = pixel_values.shape[-1]
        halves = torch.cat([output.specific, output.common], dim=1)
        fingerprints = halves, halves[partners]
        own, other = (self.decoder(output.content, fingerprint, side) for fingerprint in fingerprints)
        missed = sum((image - pixel_values).abs().mean((1, 2, 3)) for image in (own, other))
        return {
            "specific": SPECIFIC * cross_entropy(self.methods(specific).float(), kinds, reduction="none"),
            "reconstruction": 2 * RECONSTRUCTION * missed,
            "contrast": 2 * CONTRAST * (contrast(specific, kinds) + contrast(common, labels)),
        }

    def check_domains(self, count: int) -> None:
        """Check that there is a method for each data set.

        Raises:
            ValueError: If not.
        """
        if count > (methods := self.methods.out_features - 1):
            raise ValueError(
                f"this UCF tells {methods} methods apart, found {count} data sets, each of which counts as one: start "
                "a new one with --backbone ucf."
            )

    def load_backbone(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load timm's `legacy_xception` into both encoders."""
        self.content.network.load_timm(tensors)
        self.fingerprint.network.load_timm(tensors)


def partners_of(labels: torch.Tensor, domain_ids: torch.Tensor) -> torch.Tensor:
    """An image of the other class for each image, of its own data set if that has one; itself if there is none.

    Args:
        labels: 0 real, 1 fake, shape `(B,)`.
        domain_ids: Data set of each image, shape `(B,)`.

    Returns:
        Row numbers, shape `(B,)`: the k-th image of a class has the k-th of the other class, in turn.
    """
    rows = []
    for row, (label, domain) in enumerate(zip(labels.tolist(), domain_ids.tolist(), strict=True)):
        others = (labels != label) & (domain_ids == domain)
        choice = (others if bool(others.any()) else labels != label).nonzero()[:, 0].tolist()
        place = int(((labels == label) & (domain_ids == domain))[:row].sum())
        rows.append(choice[place % len(choice)] if choice else row)
    return torch.tensor(rows, device=labels.device)


def contrast(features: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """``[margin + |a - p| - |a - n|]_+`` with the next image p of the same kind and the next n of another one.

    Args:
        features: Shape `(B, channels)`.
        kinds: Class of each image, shape `(B,)`.

    Returns:
        Loss of each image, shape `(B,)`; 0 for an image without p or n.
    """
    count = len(kinds)
    same = kinds[:, None] == kinds
    itself = torch.eye(count, dtype=torch.bool, device=kinds.device)
    # Number of steps from a row to another one, in a circle.
    steps = (torch.arange(count, device=kinds.device) - torch.arange(count, device=kinds.device)[:, None]) % count
    distances = []
    for mask in (same & ~itself, ~same):
        nearest = steps.masked_fill(~mask, count).argmin(1)
        distances.append(((features - features[nearest]).pow(2).sum(1) + 1e-12).sqrt())
    known = (same & ~itself).any(1) & (~same).any(1)
    return relu(MARGIN + distances[0] - distances[1]) * known


UCFConfig.register_for_auto_class()
UCF.register_for_auto_class("AutoModelForImageClassification")
