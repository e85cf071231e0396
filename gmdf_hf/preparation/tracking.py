"""Following one person through the frames of a video.

Frames are a third of a second or more apart, so boxes of one person need not overlap, and behind a cut somebody else
may sit in the same place. Two detections are therefore linked only if place, size and look agree; the person is the
chain of links that carries the largest sum of face side x detection score. False hits and bystanders make short or
small chains.

The bounds were read off face videos. Within a shot, looks of one person correlate 0.5 to 1.0 at a third of a second and
at least 0.3 at two seconds; looks of two persons correlate up to 0.6, by chance, if they come from different videos. So
within a shot place and size decide and the look only has a veto, and behind a cut the look decides.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gmdf_hf.preparation.faces import Face

MAX_SHIFT = 0.8  # distance of the centres over the mean side
MAX_GROWTH = 1.6  # larger side over smaller side
MIN_LIKENESS = 0.35  # correlation of the looks within one shot
MIN_LIKENESS_AFTER_CUT = 0.75
MIN_SHARE = 0.1  # of the frames; what is seen in fewer is taken for a false hit


@dataclass(frozen=True)
class Candidate:
    """A detected face and its `look`, shape `(768,)`."""

    face: Face
    look: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Features for shot detection: coarse colours, shape `(64,)`, and a small image, shape `(768,)`."""

    colors: np.ndarray
    look: np.ndarray


def look(image: Image.Image) -> np.ndarray:
    """Return a picture as 16 x 16 colours without mean and of length 1: the dot product of two is their correlation."""
    values = np.asarray(image.resize((16, 16), Image.Resampling.BOX, reducing_gap=2.0), np.float64).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)


def scene(image: Image.Image) -> Scene:
    """Summarise a whole frame."""
    small = image.resize((64, 64), Image.Resampling.BOX, reducing_gap=2.0)
    levels = np.asarray(small).reshape(-1, 3).astype(int) // 64
    colors = np.bincount(levels @ [16, 4, 1], minlength=64) / len(levels)
    return Scene(colors, look(small))


def is_cut(before: Scene, after: Scene) -> bool:
    """Whether colours and layout both changed: motion alone changes the layout, light alone the colours."""
    return bool(np.minimum(before.colors, after.colors).sum() < 0.95 and before.look @ after.look < 0.5)


def is_same(first: Candidate, second: Candidate, cut: bool) -> bool:
    """Whether two detections can be one person, by place, size and look."""
    sides = sorted([first.face.side, second.face.side])
    return (
        sides[1] <= MAX_GROWTH * sides[0]
        and _shift(first, second) <= MAX_SHIFT
        and float(first.look @ second.look) >= (MIN_LIKENESS_AFTER_CUT if cut else MIN_LIKENESS)
    )


def follow(frames: list[list[Candidate]], scenes: list[Scene]) -> list[Candidate | None]:
    """Choose one person's detection in every frame.

    A person may be hidden or off screen for any number of frames and is taken up again where place, size and look still
    agree with the last sight.

    Args:
        frames: Detections of each frame, in order of time.
        scenes: Summary of each frame.

    Returns:
        For each frame the followed person's detection, or None. All None if no chain of links covers `MIN_SHARE`
        of the frames.
    """
    cuts = np.cumsum([0] + [is_cut(a, b) for a, b in itertools.pairwise(scenes)])
    nodes = [(time, candidate) for time, candidates in enumerate(frames) for candidate in candidates]
    totals: list[float] = []
    previous: list[int | None] = []
    for time, candidate in nodes:
        best, source = 0.0, None
        for number, (earlier, other) in enumerate(nodes[: len(totals)]):
            if earlier < time and is_same(other, candidate, cuts[time] > cuts[earlier]):
                # The shift costs, so that a chain does not hop to a neighbour while its own person is there.
                value = totals[number] - 0.5 * _shift(other, candidate) * candidate.face.side
                if value > best:
                    best, source = value, number
        totals.append(best + candidate.face.side * candidate.face.score)
        previous.append(source)
    chosen: list[Candidate | None] = [None] * len(frames)
    if not nodes:
        return chosen
    index: int | None = int(np.argmax(totals))
    while index is not None:
        chosen[nodes[index][0]] = nodes[index][1]
        index = previous[index]
    seen = sum(candidate is not None for candidate in chosen)
    return chosen if seen >= math.ceil(MIN_SHARE * len(frames)) else [None] * len(frames)


def _shift(first: Candidate, second: Candidate) -> float:
    distance = np.linalg.norm(first.face.center - second.face.center)
    return float(distance / (0.5 * (first.face.side + second.face.side)))
