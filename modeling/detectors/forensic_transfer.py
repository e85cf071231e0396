"""ForensicTransfer: an autoencoder of residuals whose latent features have a half for each class."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import one_hot, pad

from .detector import Detector, DetectorConfig, DetectorOutput, scaled

ENCODER = (8, 16, 32, 64)  # channels of the convolutions before the last one; all but the first halve the side
LATENT = 64  # channels of each of the two halves of the latent features
REDUCTION = 16  # factor between the side of the image and that of the latent features
RECONSTRUCTION = 0.1  # weight gamma of its loss


@strict
class ForensicTransferConfig(DetectorConfig):
    """Configuration of a [`ForensicTransfer`]; the side of its images is a multiple of 16."""

    model_type = "forensic_transfer"

    def validate_architecture(self):
        """Check the fields (called by `strict`)."""
        super().validate_architecture()
        if self.image_size % REDUCTION:
            raise ValueError(f"`image_size` must be a multiple of {REDUCTION}, found {self.image_size}.")


@dataclass
class HalvesOutput(DetectorOutput):
    """Output of a detector with halves.

    Attributes:
        latent: Latent features, those of real before those of fake, shape `(B, 128, h, w)`.
    """

    latent: torch.Tensor | None = None


def energies_of(latent: torch.Tensor) -> torch.Tensor:
    """Activation energies ``a_c = mean |h_c|`` of both halves of latent features `(B, C, h, w)`, shape `(B, 2)`."""
    return torch.stack([half.abs().mean((1, 2, 3)) for half in latent.chunk(2, dim=1)], dim=1)


def half_of(latent: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Latent features `(B, C, h, w)` whose half of the other class than `classes` `(B,)` is zero."""
    chosen = one_hot(classes, 2).to(latent)[:, :, None, None, None]
    return (latent.unflatten(1, (2, -1)) * chosen).flatten(1, 2)


def activation_loss(energies: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``|a_1 - y| + |a_0 - (1 - y)|`` of each image, with y = 1 for a fake, shape `(B,)`."""
    return (energies - one_hot(labels, 2)).abs().sum(1)


def residuals_of(images: torch.Tensor) -> torch.Tensor:
    """Third-order differences ``x_{i+2} - 3 x_{i+1} + 3 x_i - x_{i-1}`` along rows, then columns, shape `(B, 6, H, W)`.

    Args:
        images: Shape `(B, 3, H, W)`; their border is repeated.
    """
    along_rows = pad(images, (1, 2, 0, 0), mode="replicate")
    along_columns = pad(images, (0, 0, 1, 2), mode="replicate")
    for _ in range(3):
        along_rows = along_rows[..., 1:] - along_rows[..., :-1]
        along_columns = along_columns[..., 1:, :] - along_columns[..., :-1, :]
    return torch.cat([along_rows, along_columns], dim=1)


class ForensicTransfer(Detector):
    """ForensicTransfer (Cozzolino et al. 2018): the halves of an autoencoder's latent features decide.

    Input and aim of the autoencoder are high-pass residuals. A half h_0 of the latent features is for real, h_1 for
    fake. Their activation energies ``a_c = mean |h_c|`` decide. The half of the other class is set to zero before the
    decoder. The loss is ``L_act + 0.1 L_rec`` with the mean absolute error L_rec of the reconstruction and
    ``L_act = |a_1 - y| + |a_0 - (1 - y)|``, y = 1 for a fake.

    From memory or ours: channels and normalisations of the layers (five convolutions down, nearest neighbours and
    convolutions up), in which public re-implementations differ; residuals along rows and columns of each colour; the
    decoder ends without an activation, because residuals have both signs. The paper's second phase, which adapts the
    network to a few images of the test domain, is left out: in no table here may a method see that domain.

    197,798 parameters; no published count is known to us.
    """

    config_class = ForensicTransferConfig

    def __init__(self, config: ForensicTransferConfig) -> None:
        super().__init__(config)
        sizes = [6, *(scaled(number, config.width) for number in ENCODER), 2 * scaled(LATENT, config.width)]
        down: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            norms = [nn.BatchNorm2d(outputs)] if 0 < number < len(ENCODER) else []  # neither the first nor the last
            down += [nn.Conv2d(inputs, outputs, 3, 1 + (number > 0), 1), *norms, nn.ReLU()]
        up: list[nn.Module] = [nn.BatchNorm2d(sizes[-1])]
        for inputs, outputs in itertools.pairwise(sizes[:0:-1]):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up, nn.Conv2d(sizes[1], sizes[0], 3, 1, 1))
        self.post_init()

    def classify(self, pixel_values: torch.Tensor) -> HalvesOutput:
        """The energies of both halves are the logits."""
        latent = self.encoder(residuals_of(pixel_values))
        return HalvesOutput(logits=energies_of(latent), latent=latent)

    def classification_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """L_act of each image."""
        return activation_loss(logits, labels)

    def auxiliary_losses(
        self,
        output: HalvesOutput,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        forged: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """0.1 L_rec."""
        assert output.latent is not None
        errors = self.decoder(half_of(output.latent, labels)) - residuals_of(pixel_values)
        return {"reconstruction": RECONSTRUCTION * errors.abs().mean((1, 2, 3))}


ForensicTransferConfig.register_for_auto_class()
ForensicTransfer.register_for_auto_class("AutoModelForImageClassification")
