"""Face candidates of a picture, and the quarter turn at which its faces are upright."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from gmdf_hf.preparation.faces import DETECTION_SIDE, Detector, reduce_to
from gmdf_hf.preparation.geometry import crop_box
from gmdf_hf.preparation.tracking import Candidate, Scene, look, scene

# Pictures are also searched rotated if the best upright face scores below this value: detectors find some upside-down
# faces, with low scores.
MIN_UPRIGHT_SCORE, MIN_GAIN = 0.92, 0.03


def find_candidates(picture: np.ndarray, detector: Detector) -> tuple[list[Candidate], Scene]:
    """Find the faces in an RGB picture, largest first, with the features for tracking."""
    small, factor = reduce_to(picture, DETECTION_SIDE)
    faces = sorted(detector(small), key=lambda face: -face.side * face.score)
    image = Image.fromarray(picture)
    own_pixels = [face.scaled(factor) for face in faces]
    # Appearance is compared on the box crop: an aligned crop shows less context and rotates with every landmark.
    candidates = [Candidate(face, look(crop_box(image, face.box, 64))) for face in own_pixels]
    return candidates, scene(Image.fromarray(small))


def turned(picture: np.ndarray, turns: int) -> np.ndarray:
    """Turn a picture counter-clockwise by quarters."""
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns % 4 else picture


def best_score(found: Sequence[Sequence[Candidate]]) -> float:
    """Largest detection score of all frames; 0 without a face."""
    return max((candidate.face.score for candidates in found for candidate in candidates), default=0.0)


def best_turn(pictures: Sequence[np.ndarray], detector: Detector, upright_score: float) -> int:
    """Number of quarter turns at which the detector is clearly more certain than upright; 0 if there is none.

    Args:
        pictures: Frames of one file.
        detector: Face detector.
        upright_score: Best score of the frames as they are.
    """

    def score(turns: int) -> float:
        return max((face.score for picture in pictures for face in detector(turned(picture, turns))), default=0.0)

    scores = {turns: score(turns) for turns in (1, 2, 3)}
    turns = max(scores, key=lambda turns: scores[turns])
    return turns if scores[turns] and scores[turns] >= upright_score + MIN_GAIN else 0
