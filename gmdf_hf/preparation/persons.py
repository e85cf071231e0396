"""The faces of a picture and the people of a video, for the pipeline: as `prepare` finds, follows and cuts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from gmdf_hf.preparation.crops import MAX_FACES, find_candidates
from gmdf_hf.preparation.detectors import load_detector
from gmdf_hf.preparation.faces import Detector
from gmdf_hf.preparation.geometry import crop_box, square_box
from gmdf_hf.preparation.tracking import Candidate, Scene, follow


@dataclass(frozen=True)
class FoundFace:
    """A face in one frame.

    Attributes:
        frame: Number of the frame; 0 for a picture.
        person: Who it is, the same number in all frames of a video; 0 is the most prominent.
        box: Face box `(left, top, right, bottom)` in pixels of the frame.
        crop_box: The square that the forgery detector sees.
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


def load_finder(detector: str, weights: str | None = None) -> FaceFinder:
    """Return the function `find_people` with a detector (see `load_detector`)."""
    return partial(find_people, load_detector(detector, weights))


def find_people(detector: Detector, pictures: Iterable[tuple[int, np.ndarray]], size: int) -> list[FoundFace]:
    """Find faces, follow each person through the frames, and cut the faces out.

    Person 0 is the one that `prepare` would follow. The others are found by following again among the faces that are
    left, so a bystander seen in less than a tenth of a video is nobody.

    Args:
        detector: Face detector.
        pictures: Frame numbers and RGB pictures of shape `(height, width, 3)`; dropped as soon as faces are cut out.
        size: Side of a crop in pixels.

    Returns:
        Faces in the order of persons, then of frames.
    """
    numbers: list[int] = []
    candidates: list[list[Candidate]] = []
    scenes: list[Scene] = []
    cut: dict[int, tuple[tuple[int, int, int, int], Image.Image]] = {}
    for number, picture in pictures:
        found, scene = find_candidates(picture, detector)
        image = Image.fromarray(picture)
        for candidate in found:
            box = candidate.face.box
            cut[id(candidate)] = (square_box(box, image.size), crop_box(image, box, size))
        numbers.append(number)
        candidates.append(found)
        scenes.append(scene)
    faces: list[FoundFace] = []
    for person in range(MAX_FACES):
        chosen = follow(candidates, scenes)
        for number, own in zip(numbers, chosen, strict=True):
            if own is not None:
                (crop_place, crop), face = cut[id(own)], own.face
                faces.append(FoundFace(number, person, face.box, crop_place, face.score, crop))
        candidates = [
            [other for other in frame if other is not taken] for frame, taken in zip(candidates, chosen, strict=True)
        ]
    return faces
