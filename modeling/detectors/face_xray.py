"""Face X-ray: where a face was blended into a picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from .detector import Detector, DetectorConfig, DetectorOutput
from .hrnet import HRNet

BOUNDARY = 100.0  # weight lambda of the X-ray's loss
REDUCTION = 32  # factor between the side of the image and that of the smallest branch


@strict
class FaceXrayConfig(DetectorConfig):
    """Configuration of a [`FaceXray`]; the side of its images is a multiple of 32."""

    model_type = "face_xray"

    def validate_architecture(self):
        """Check the fields (called by `strict`)."""
        super().validate_architecture()
        if self.image_size % REDUCTION:
            raise ValueError(f"`image_size` must be a multiple of {REDUCTION}, found {self.image_size}.")


@dataclass
class FaceXrayOutput(DetectorOutput):
    """Output of a `FaceXray`.

    Attributes:
        boundary: Logits of the X-ray, shape `(B, image_size, image_size)`.
    """

    boundary: torch.Tensor | None = None


def xray(forged: torch.Tensor) -> torch.Tensor:
    """``B = 4 M (1 - M)`` (Eq. 2): 1 where both pictures are mixed in equal parts, 0 where there is one alone."""
    return 4 * forged * (1 - forged)


class FaceXray(Detector):
    """Face X-ray (Li et al. 2020): HRNet predicts the boundary of a blending, which alone decides.

    All four resolutions of HRNetV2-W48 are joined, a 1 x 1 convolution and an enlargement give the X-ray B', and a
    linear classifier reads its mean. The loss is ``100 L_b + L_c``: the cross-entropy of each pixel of B' with ``B =
    4 M (1 - M)``, and that of the class (section 3.3). Training replaces the fakes of a data set by blends of its
    reals, as the paper does without forged data, so it needs no masks. The weight 100 is the paper's from memory.

    65,325,845 parameters. Published for HRNetV2-W48 with a head for 19 classes: 65.9 million, of which that
    head has 534,259 and this network 65,325,120.
    """

    config_class = FaceXrayConfig
    needs_masks = True
    trains_on_blends = True

    def __init__(self, config: FaceXrayConfig) -> None:
        super().__init__(config)
        self.network = HRNet(config.width)
        self.boundary = nn.Conv2d(self.network.out_channels, 1, 1)
        self.classifier = nn.Linear(1, 2)
        self.post_init()
        nn.init.normal_(self.boundary.weight, std=0.001)  # HRNet's; the X-ray starts at 0.5, not at 0 and 1

    def classify(self, pixel_values: torch.Tensor) -> FaceXrayOutput:
        """The X-ray, and the class from its mean."""
        boundary = self.boundary(self.network(pixel_values))
        boundary = interpolate(boundary, size=pixel_values.shape[-2:], mode="bilinear")
        return FaceXrayOutput(
            logits=self.classifier(torch.sigmoid(boundary).mean((2, 3))),
            boundary=boundary[:, 0],
        )

    def auxiliary_losses(
        self,
        output: FaceXrayOutput,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        forged: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Loss of the X-ray; an image without a known mask has none."""
        assert output.boundary is not None
        forged = -torch.ones_like(pixel_values[:, 0]) if forged is None else forged
        of_pixels = binary_cross_entropy_with_logits(
            output.boundary.float(), xray(forged.clamp(0, 1)), reduction="none"
        )
        return {"boundary": BOUNDARY * (of_pixels * (forged >= 0)).mean((1, 2))}


FaceXrayConfig.register_for_auto_class()
FaceXray.register_for_auto_class("AutoModelForImageClassification")
