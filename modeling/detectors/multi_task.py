"""Multi-task: a Y-shaped autoencoder that classifies, segments and reconstructs."""

from __future__ import annotations

import itertools

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import cross_entropy

from .detector import Detector, DetectorConfig, scaled
from .forensic_transfer import HalvesOutput, activation_loss, energies_of, half_of

ENCODER = (8, 8, 16, 16, 32, 32, 64, 64)  # channels of the convolutions; every second one halves the side
LATENT = 64  # channels of each of the two halves of the latent features
SHARED = (64, 64, 32, 32)  # of the decoder's shared part; every second one doubles the side
BRANCH = (16, 16, 8, 8)  # of each branch, as above
REDUCTION = 16  # factor between the side of the image and that of the latent features


@strict
class MultiTaskConfig(DetectorConfig):
    """Configuration of a [`MultiTask`]; the side of its images is a multiple of 16."""

    model_type = "multi_task"

    def validate_architecture(self):
        """Check the fields (called by `strict`)."""
        super().validate_architecture()
        if self.image_size % REDUCTION:
            raise ValueError(f"`image_size` must be a multiple of {REDUCTION}, found {self.image_size}.")


def encoder(width: float) -> nn.Sequential:
    """Convolutions with batch normalisation and ReLU from an image to its latent features."""
    sizes = [3, *(scaled(number, width) for number in ENCODER), 2 * scaled(LATENT, width)]
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Conv2d(inputs, outputs, 3, 1 + number % 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def decoder(inputs: int, channels: tuple[int, ...], width: float) -> nn.Sequential:
    """Transposed convolutions with batch normalisation and ReLU, of which every second one doubles the side."""
    sizes = [inputs, *(scaled(number, width) for number in channels)]
    layers: list[nn.Module] = []
    for number, pair in enumerate(itertools.pairwise(sizes)):
        doubles = number % 2
        layers += [nn.ConvTranspose2d(*pair, 3, 1 + doubles, 1, doubles), nn.BatchNorm2d(pair[1]), nn.ReLU()]
    return nn.Sequential(*layers)


class MultiTask(Detector):
    """Multi-task learning (Nguyen et al. 2019): one autoencoder for the class, what was forged, and the image.

    The latent features have a half h_0 for real and a half h_1 for fake. Their activation energies ``a_c = mean |h_c|``
    decide. The half of the other class is set to zero before the decoder, whose two branches segment and reconstruct.
    The loss is ``L_act + L_seg + L_rec``:

    - L_act: ``|a_1 - y| + |a_0 - (1 - y)|`` with y = 1 for a fake.
    - L_seg: cross-entropy of each pixel's class, forged or not; left out for images whose mask is unknown.
    - L_rec: squared error of the reconstruction.

    The authors' code applies a softmax before the cross-entropy of L_seg, which has its own; here there is one. Images
    are in [-1, 1], the range of the decoder's tanh.

    304,949 parameters; no published count is known to us.
    """

    config_class = MultiTaskConfig
    needs_masks = True

    def __init__(self, config: MultiTaskConfig) -> None:
        super().__init__(config)
        width = config.width
        shared, branch = scaled(SHARED[-1], width), scaled(BRANCH[-1], width)
        self.encoder = encoder(width)
        self.shared = decoder(2 * scaled(LATENT, width), SHARED, width)
        self.segmentation = decoder(shared, BRANCH, width).append(nn.ConvTranspose2d(branch, 2, 3, 1, 1))
        self.reconstruction = decoder(shared, BRANCH, width)
        self.reconstruction.extend([nn.ConvTranspose2d(branch, 3, 3, 1, 1), nn.Tanh()])
        self.post_init()

    def classify(self, pixel_values: torch.Tensor) -> HalvesOutput:
        """The energies of both halves are the logits, as the authors score."""
        latent = self.encoder(pixel_values)
        return HalvesOutput(logits=energies_of(latent), latent=latent)

    def decode(self, latent: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Segment and reconstruct images.

        Args:
            latent: Latent features, shape `(B, 128, h, w)`.
            classes: Class whose half is used, shape `(B,)`: the true one in training, `argmax` of the logits after it.

        Returns:
            Logits of genuine and forged pixels `(B, 2, H, W)`, and the images `(B, 3, H, W)`.
        """
        shared = self.shared(half_of(latent, classes))
        return self.segmentation(shared), self.reconstruction(shared)

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
        """L_seg and L_rec; an image without a known mask has no L_seg."""
        assert output.latent is not None
        forged = -torch.ones_like(pixel_values[:, 0]) if forged is None else forged
        segmented, image = self.decode(output.latent, labels)
        of_pixels = cross_entropy(segmented.float(), (forged >= 0.5).long(), reduction="none")
        return {
            "segmentation": (of_pixels * (forged >= 0)).mean((1, 2)),
            "reconstruction": (image - pixel_values).pow(2).mean((1, 2, 3)),
        }


MultiTaskConfig.register_for_auto_class()
MultiTask.register_for_auto_class("AutoModelForImageClassification")
