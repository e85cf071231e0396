"""Where the faces of a picture or video come from: the package's detectors, or the whole picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundFace:
    """A face in one frame.

    Attributes:
        frame: Number of the frame; 0 for a picture.
        person: Who it is, the same number in all frames of a video; 0 is the most prominent.
        box: Face box `(left, top, right, bottom)` in pixels of the frame.
        crop_box: The square that the detector of forgeries sees.
        detection_score: Confidence of the face detector.
        crop: That square.
    """

    frame: int
    person: int
    box: tuple[float, float, float, float]
    crop_box: tuple[int, int, int, int]
    detection_score: float
    crop: Image.Image


# From frames, and the size of a crop in pixels, to the faces in them.
FaceFinder = Callable[[Iterable[tuple[int, np.ndarray]], int], list[FoundFace]]


def whole_pictures(pictures: Iterable[tuple[int, np.ndarray]], size: int) -> list[FoundFace]:
    """Take every frame for the crop of one face, as it is: `size` is left to the image processor."""
    faces = []
    for number, picture in pictures:
        box = (0, 0, picture.shape[1], picture.shape[0])
        faces.append(FoundFace(number, 0, box, box, 1.0, Image.fromarray(picture)))
    return faces


def load_finder(detector: str | None, weights: str | None) -> FaceFinder:
    """Return a function that finds faces, follows people through the frames, and cuts them out.

    The detectors are those of the package `gmdf_hf`, with which training crops are made. A saved model brings its own
    code but not theirs.

    Args:
        detector: `yunet`, `retinaface` or `haar`; `none` takes every input for the crop of a face. None is `yunet`
            where the package is installed and `none`, with a warning, where it is not.
        weights: Local file with the detector's weights; None takes those of the hub.

    Raises:
        ImportError: If a detector was asked for and the package is not installed.
        gmdf_hf.common.errors.DetectorError: If the detector's weights are missing; the message says what to do.
        ValueError: If the detector is unknown.
    """
    if detector == "none":
        return whole_pictures
    try:
        finding = import_module("gmdf_hf.preparation.persons")
    except ImportError as error:
        message = (
            "Finding faces needs the package gmdf-hf and OpenCV: pip install 'gmdf-hf[prepare]'. Without them give "
            'square crops of one face, and say so with detector="none".'
        )
        if detector is not None:
            raise ImportError(message) from error
        logger.warning("Every picture is taken for the crop of one face. %s", message)
        return whole_pictures
    return finding.load_finder(detector or "yunet", weights)
