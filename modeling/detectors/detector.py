"""Base classes of the comparison detectors: configuration, output, losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput


@strict
class DetectorConfig(PreTrainedConfig):
    r"""Configuration of a detector.

    Args:
        image_size: Side of the images in pixels.
        width: Factor on all numbers of channels; 1 is the published network.
        domains: Names of the source domains.

    Raises:
        StrictDataclassError: If a field has the wrong type or is out of range.
    """

    image_mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)  # of the image processor
    image_std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)

    image_size: int = 256
    width: float | int = 1.0
    domains: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs):
        if self.id2label is None and kwargs.get("num_labels", 2) == 2:
            self.id2label = {0: "real", 1: "fake"}
            self.label2id = {"real": 0, "fake": 1}
        super().__post_init__(**kwargs)
        self.domains = list(self.domains)

    def validate_architecture(self):
        """Check the fields (called by `strict`)."""
        if len(self.id2label or {}) != 2:
            raise ValueError(f"A detector has two classes, real and fake; found {len(self.id2label or {})} labels.")
        if not 0 < self.width <= 4:
            raise ValueError(f"`width` must be above 0 and at most 4, found {self.width}.")
        if not 16 <= self.image_size <= 4096:
            raise ValueError(f"`image_size` must lie between 16 and 4096, found {self.image_size}.")


@dataclass
class DetectorOutput(ModelOutput):
    """Output of a detector.

    Attributes:
        loss: Sum of the means of all losses, a scalar; when `labels` are given.
        logits: Logits of real and fake, shape `(B, 2)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class Detector(PreTrainedModel):
    """A detector: a subclass implements `classify` and, if it has losses of its own, `auxiliary_losses`.

    Attributes:
        needs_masks: Whether its losses use what was forged in each image.
    """

    config_class = DetectorConfig
    main_input_name = "pixel_values"
    needs_masks: ClassVar[bool] = False

    def classify(self, pixel_values: torch.Tensor) -> Any:
        """Return a `DetectorOutput` without loss for images of shape `(B, 3, image_size, image_size)`."""
        raise NotImplementedError

    def classification_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each image, shape `(B,)`, unless the paper has another loss."""
        return cross_entropy(logits, labels, reduction="none")

    def auxiliary_losses(
        self,
        output: Any,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        forged: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Weighted losses of training besides `classification_loss`, by name.

        Args:
            output: Result of `classify`.
            pixel_values: The images.
            labels: 0 real, 1 fake, shape `(B,)`.
            domain_ids: Data set of each image, shape `(B,)`.
            forged: Share of each pixel that was forged, -1 if unknown, shape `(B, H, W)`; for `needs_masks`.

        Returns:
            Each image's share, shape `(B,)`: the loss is their mean.
        """
        return {}

    def losses(
        self,
        output: Any,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        forged: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """All losses of training, `classification` first; arguments and result are those of `auxiliary_losses`."""
        own = self.auxiliary_losses(output, pixel_values, labels, domain_ids, forged)
        return {"classification": self.classification_loss(output.logits.float(), labels), **own}

    def check_domains(self, count: int) -> None:
        """Check that the detector can be trained on a number of data sets.

        Raises:
            ValueError: If it was made for fewer.
        """

    def load_backbone(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load pre-trained weights of the network inside the detector.

        Args:
            tensors: Content of a safetensors file.

        Raises:
            ValueError: If the detector has no such network, or the weights are those of another one.
        """
        raise ValueError(f"{type(self).__name__} has no network inside with pre-trained weights.")

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        forged: torch.Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Classify images of shape `(B, 3, image_size, image_size)`.

        Args:
            pixel_values: Images, normalised by the image processor.
            labels: 0 real, 1 fake, shape `(B,)`, for the loss.
            forged: As in `auxiliary_losses`.
        """
        output = self.classify(pixel_values)
        if labels is not None:
            losses = self.losses(output, pixel_values, labels, torch.zeros_like(labels), forged)
            output.loss = torch.stack([loss.mean() for loss in losses.values()]).sum()
        return output

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=5**0.5)


def scaled(channels: int, width: float) -> int:
    """Number of channels times a factor, at least 1."""
    return max(round(channels * width), 1)
