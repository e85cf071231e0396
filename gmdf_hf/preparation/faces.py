"""Common parts of the face detectors: the `Face` result, sources of the weights, input size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from gmdf_hf.common.errors import DetectorError
from gmdf_hf.common.hub import hub_or_cache

# Pictures are reduced to this longer side before detection. 640 doubles the time and additionally finds only faces of
# less than 50 pixels in a 1080p frame.
DETECTION_SIDE = 480
MIN_SCORE = 0.6


@dataclass(frozen=True)
class Face:
    """One detected face.

    Attributes:
        box: `(left, top, right, bottom)` in pixels of the picture.
        landmarks: Five points in pixels, shape `(5, 2)`, in the order of `geometry`; None if the detector gives none.
        score: Confidence in [0, 1].
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray | None
    score: float

    @property
    def side(self) -> float:
        """Geometric mean of width and height in pixels."""
        return float(np.sqrt((self.box[2] - self.box[0]) * (self.box[3] - self.box[1])))

    @property
    def center(self) -> np.ndarray:
        """Middle of the box, shape `(2,)`."""
        return np.array([self.box[0] + self.box[2], self.box[1] + self.box[3]]) / 2

    def scaled(self, factor: float) -> Face:
        """Return the face in coordinates of a picture `factor` times as large."""
        landmarks = None if self.landmarks is None else self.landmarks * factor
        left, top, right, bottom = (value * factor for value in self.box)
        return Face((left, top, right, bottom), landmarks, self.score)


Detector = Callable[[np.ndarray], list[Face]]


@dataclass(frozen=True)
class HubFile:
    """One file of a hub repository, pinned by its hash."""

    repo: str
    name: str
    revision: str
    sha256: str


YUNET = HubFile(
    "opencv/face_detection_yunet",
    "face_detection_yunet_2023mar.onnx",
    "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310",
    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
)
RETINAFACE = HubFile(
    "py-feat/retinaface",
    "mobilenet0.25_Final.pth",
    "31702389094fccc7060c15299e6ad712ee880de6",
    "5f88f7957d9eaef82b49b9e0202bc56e97292e2aede2999209accd34442cc4df",
)


def find_weights(file: HubFile, path: str | Path | None = None) -> Path:
    """Return the path of a detector's weights: a local file, or the pinned file from the hub or its cache.

    Args:
        file: File on the hub; with `HF_HUB_OFFLINE=1` only the cache is searched.
        path: Local file to use instead, without a hash check.

    Raises:
        DetectorError: If the file is missing or has another hash than the pinned file.
    """
    if path is not None:
        if not Path(path).is_file():
            raise DetectorError(f"Detector weights not found: {path} is no file.")
        return Path(path)
    try:
        with hub_or_cache(file.repo):
            found = Path(hf_hub_download(file.repo, file.name, revision=file.revision))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise DetectorError(
            f"Detector weights {file.repo}/{file.name} are neither in the hub's cache nor can they be fetched. Fetch "
            f"https://huggingface.co/{file.repo}/resolve/{file.revision}/{file.name} where there is a connection and "
            "pass it with --detector_weights PATH (in Python: detector_weights=PATH), or copy that machine's hub cache "
            "and set HF_HOME to it."
        ) from error
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if digest != file.sha256:
        raise DetectorError(f"{found}: SHA-256 {digest}, expected {file.sha256}. Delete the file and fetch it again.")
    return found


def reduce_to(pixels: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """Reduce a picture to a longer side of at most `side`; return it and the factor back to original pixels."""
    height, width = pixels.shape[:2]
    factor = max(1.0, max(height, width) / side)
    if factor == 1:
        return pixels, 1.0
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), factor


def inside(faces: list[Face], pixels: np.ndarray) -> list[Face]:
    """Keep faces with a non-empty box, a centre inside the picture and landmarks that do not coincide."""
    height, width = pixels.shape[:2]
    return [
        face
        for face in faces
        if face.box[2] > face.box[0]
        and face.box[3] > face.box[1]
        and 0 <= face.center[0] < width
        and 0 <= face.center[1] < height
        and (face.landmarks is None or np.ptp(face.landmarks, axis=0).max() > 0)
    ]
