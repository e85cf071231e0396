"""Face detectors: functions from a picture to face boxes with landmarks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from gmdf_hf.common.errors import DetectorError
from gmdf_hf.preparation.faces import (
    DETECTION_SIDE,
    MIN_SCORE,
    RETINAFACE,
    YUNET,
    Detector,
    Face,
    find_weights,
    inside,
    reduce_to,
)

YUNET_FIXED_SIDE = 640
MAX_BOXES = 5000  # before non-maximum suppression; a crowd has several boxes per face
DETECTORS = ("yunet", "retinaface", "haar", "none")


def load_detector(name: str, weights: str | Path | None = None) -> Detector:
    """Return the detector `name`, one of `DETECTORS`; `none` treats the whole picture as the face.

    Args:
        name: Name of the detector.
        weights: Local weights file; None uses the pinned weights from the hub.

    Returns:
        Function from an RGB picture of shape `(height, width, 3)` to its faces.

    Raises:
        DetectorError: If the weights are missing or this OpenCV lacks the detector.
        ValueError: If the name is unknown.
    """
    if name == "yunet":
        return YuNet(find_weights(YUNET, weights))
    if name == "retinaface":
        # Imported here: the only detector that needs torch, whose import takes seconds.
        from gmdf_hf.preparation.retinaface import RetinaFaceDetector

        return RetinaFaceDetector(find_weights(RETINAFACE, weights))
    if name == "haar":
        return Haar()
    if name == "none":
        return whole_picture
    raise ValueError(f"Unknown detector {name!r}, expected one of {', '.join(DETECTORS)}.")


def whole_picture(pixels: np.ndarray) -> list[Face]:
    """Return the whole picture as the only face, for data sets of face crops."""
    height, width = pixels.shape[:2]
    return [Face((0.0, 0.0, float(width), float(height)), None, 1.0)]


class YuNet:
    """OpenCV's `FaceDetectorYN`: fast, five landmarks.

    Args:
        weights: ONNX file, with free or with fixed input size (the hub's is fixed to 640 x 640).

    Raises:
        DetectorError: If OpenCV cannot read the file.
    """

    def __init__(self, weights: Path) -> None:
        # OpenCV 5 warns at every start about an unsupported setting that is not set here.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        try:
            self.model = cv2.FaceDetectorYN.create(str(weights), "", (320, 320), MIN_SCORE, 0.3, MAX_BOXES)
        except cv2.error as error:
            raise DetectorError(f"{weights}: not a YuNet model that OpenCV {cv2.__version__} can read.") from error
        try:
            self.model.detect(np.zeros((320, 320, 3), np.uint8))
            self.fixed = False
        except cv2.error:  # OpenCV 5 requires the fixed input size of the export, OpenCV 4 resizes it
            self.fixed = True

    def __call__(self, pixels: np.ndarray) -> list[Face]:
        small, factor = reduce_to(pixels, DETECTION_SIDE)
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        if self.fixed:
            height, width = small.shape[:2]
            bottom, right = YUNET_FIXED_SIDE - height, YUNET_FIXED_SIDE - width
            small = cv2.copyMakeBorder(small, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
        self.model.setInputSize((small.shape[1], small.shape[0]))
        rows = self.model.detect(small)[1]
        faces = []
        for row in np.empty((0, 15)) if rows is None else rows.astype(float):
            x, y, width, height = row[:4] * factor
            faces.append(Face((x, y, x + width, y + height), row[4:14].reshape(5, 2) * factor, float(row[14])))
        return inside(faces, pixels)


class Haar:
    """OpenCV 4's Haar cascade: less accurate, but needs no additional weights.

    Raises:
        DetectorError: If OpenCV is version 5 or later, which has neither the class nor the file.
    """

    def __init__(self) -> None:
        if not hasattr(cv2, "CascadeClassifier"):
            raise DetectorError(f"Haar cascades need OpenCV 4, found {cv2.__version__}; use --detector yunet.")
        folder = cv2.data.haarcascades  # type: ignore[attr-defined]  # OpenCV 4 only
        self.model = cv2.CascadeClassifier(folder + "haarcascade_frontalface_default.xml")

    def __call__(self, pixels: np.ndarray) -> list[Face]:
        small, factor = reduce_to(pixels, DETECTION_SIDE)
        boxes = self.model.detectMultiScale(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), 1.1, 5, minSize=(24, 24))
        boxes = np.asarray(boxes, float).reshape(-1, 4) * factor
        return inside([Face((x, y, x + w, y + h), None, 1.0) for x, y, w, h in boxes], pixels)
