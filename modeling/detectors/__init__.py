"""The detectors that the paper compares with, one file each; the import registers them with transformers."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .detector import Detector, DetectorConfig, DetectorOutput
from .efficientnet_b4 import efficientnet_b4
from .f3net import F3Net
from .face_xray import FaceXray
from .forensic_transfer import ForensicTransfer
from .local_relation import LocalRelation
from .m2tr import M2TR
from .mat import MAT
from .meso_inception4 import MesoInception4
from .multi_task import MultiTask
from .recce import RECCE
from .srm import SRMDetector
from .ucf import UCF
from .xception import XceptionDetector

CLASSES: tuple[type[Detector], ...] = (
    *(FaceXray, ForensicTransfer, F3Net, LocalRelation, M2TR, MAT, MesoInception4),
    *(MultiTask, RECCE, SRMDetector, UCF, XceptionDetector),
)
for detector in CLASSES:
    AutoConfig.register(detector.config_class.model_type, detector.config_class)
    AutoModelForImageClassification.register(detector.config_class, detector)


def make(cls: type[Detector], **fields: Any) -> Detector:
    """Make a detector with random weights.

    Args:
        cls: Its class.
        **fields: Fields of its configuration.

    Raises:
        TypeError: If a field is unknown: transformers keeps any.
    """
    known = {field.name for field in dataclasses.fields(cls.config_class)}
    known -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    if unknown := sorted(set(fields) - known):
        raise TypeError(f"unknown field {unknown[0]!r}, expected one of {', '.join(sorted(known))}.")
    return cls(cls.config_class(**fields))


# A new detector with random weights by its name, from fields of its configuration.
DETECTORS: dict[str, Callable[..., PreTrainedModel]] = {
    "efficientnet_b4": efficientnet_b4,
    **{cls.config_class.model_type: partial(make, cls) for cls in CLASSES},
}


def image_processor_of(config: PreTrainedConfig) -> ViTImageProcessorPil:
    """Image processor of a detector: resizing to its side, and its normalisation."""
    own = isinstance(config, DetectorConfig)
    mean = list(config.image_mean if own else IMAGENET_DEFAULT_MEAN)
    std = list(config.image_std if own else IMAGENET_DEFAULT_STD)
    return ViTImageProcessorPil(
        size={"height": config.image_size, "width": config.image_size}, image_mean=mean, image_std=std
    )


__all__ = ["DETECTORS", "Detector", "DetectorConfig", "DetectorOutput", "image_processor_of"]
