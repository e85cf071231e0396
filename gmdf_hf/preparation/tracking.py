"""Tracking of persons through the frames of a video.

Frames are a third of a second or more apart, so boxes of one person may not overlap, and after a cut another person may
be at the same position. Two detections are therefore linked only if position, size and appearance agree. The person is
the chain of links with the largest sum of face side x detection score. False detections and bystanders form short or
small chains.

The thresholds were measured on face videos. Within a shot, the looks (appearance vectors) of one person correlate 0.5
to 1.0 at a third of a second and at least 0.3 at two seconds; the looks of two persons from different videos correlate
up to 0.6 by chance. So within a shot position and size decide and the look can only reject a link; after a cut the look
decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gmdf_hf.preparation.faces import Face

MAX_SHIFT = 0.8  # distance of the centres relative to the mean side
MAX_GROWTH = 1.6  # larger side over smaller side
MIN_LIKENESS = 0.35  # correlation of the looks within one shot
MIN_LIKENESS_AFTER_CUT = 0.85
SAME_COLORS, OTHER_COLORS = 0.95, 0.5  # overlap of two frames' colours: same above, different below


@dataclass(frozen=True, eq=False)
class Candidate:
    """A detected face.

    Attributes:
        face: The detection.
        look: Its appearance vector, shape `(768,)`.
        evidence: Factor on its weight in a chain: 1, or the share of the face that a mask covers.
    """

    face: Face
    look: np.ndarray
    evidence: float = 1.0

    @property
    def weight(self) -> float:
        """Weight of the face in a chain of links."""
        return self.face.side * self.face.score * self.evidence


@dataclass(frozen=True)
class Scene:
    """Features for shot detection: coarse colours, shape `(64,)`, and a small image, shape `(768,)`."""

    colors: np.ndarray
    look: np.ndarray


def look(image: Image.Image) -> np.ndarray:
    """Return a picture as 16 x 16 colours, centred and normalised: the dot product of two is their correlation."""
    values = np.asarray(image.resize((16, 16), Image.Resampling.BOX, reducing_gap=2.0), np.float64).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)


def scene(image: Image.Image) -> Scene:
    """Compute the shot features of a whole frame."""
    small = image.resize((64, 64), Image.Resampling.BOX, reducing_gap=2.0)
    levels = np.asarray(small).reshape(-1, 3).astype(int) // 64
    colors = np.bincount(levels @ [16, 4, 1], minlength=64) / len(levels)
    return Scene(colors, look(small))


def is_cut(before: Scene, after: Scene) -> bool:
    """Whether a new shot begins: both colours and layout change.

    Motion alone changes the layout, light alone the colours. Within a shot, frames a third of a second apart share at
    least 0.9 of their colours; shots filmed in different places mostly less than 0.5, even with similar layouts.
    """
    shared, likeness = float(np.minimum(before.colors, after.colors).sum()), float(before.look @ after.look)
    return (shared < SAME_COLORS and likeness < 0.5) or (shared < OTHER_COLORS and likeness < 0.95)


def shots(scenes: Sequence[Scene]) -> np.ndarray:
    """Number of each frame's shot, from 0."""
    return np.cumsum([0] + [is_cut(a, b) for a, b in itertools.pairwise(scenes)])[: len(scenes)]


class _Nodes:
    """All candidates of a video as arrays, in order of time."""

    def __init__(self, frames: Sequence[Sequence[Candidate]], scenes: Sequence[Scene]):
        shot = shots(scenes)
        self.items = [(time, candidate) for time, found in enumerate(frames) for candidate in found]
        self.times = np.array([time for time, _ in self.items], int)
        self.shots = shot[self.times] if self.items else np.empty(0, int)
        self.sides = np.array([candidate.face.side for _, candidate in self.items])
        self.centers = np.array([candidate.face.center for _, candidate in self.items]).reshape(-1, 2)
        self.looks = np.array([candidate.look for _, candidate in self.items], np.float32)
        self.weights = np.array([candidate.weight for _, candidate in self.items])

    def earlier(self, node: int, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Free nodes in earlier frames that may be the same person by position, size and look, and their shifts."""
        last = int(np.searchsorted(self.times, self.times[node]))
        near = np.flatnonzero(free[:last])
        sides = self.sides[near]
        shift = np.linalg.norm(self.centers[near] - self.centers[node], axis=1) / (0.5 * (sides + self.sides[node]))
        growth = np.maximum(sides, self.sides[node]) / np.minimum(sides, self.sides[node])
        keep = (shift <= MAX_SHIFT) & (growth <= MAX_GROWTH)
        near, shift = near[keep], shift[keep]
        needed = np.where(self.shots[near] == self.shots[node], MIN_LIKENESS, MIN_LIKENESS_AFTER_CUT)
        keep = self.looks[near] @ self.looks[node] >= needed
        return near[keep], shift[keep]

    def best_chain(self, free: np.ndarray) -> list[int]:
        """Nodes of the chain with the largest weight among the free nodes, in order of time."""
        totals, previous = np.full(len(self.items), -np.inf), np.full(len(self.items), -1)
        for node in np.flatnonzero(free):
            near, shift = self.earlier(int(node), free)
            best = 0.0
            if len(near):
                # Shifts are penalised, so that a chain does not switch to a neighbour while its person is visible.
                values = totals[near] - 0.5 * shift * self.sides[node]
                if values.max() > 0:
                    best, previous[node] = float(values.max()), near[int(values.argmax())]
            totals[node] = best + self.weights[node]
        chain = [int(totals.argmax())]
        while previous[chain[-1]] >= 0:
            chain.append(int(previous[chain[-1]]))
        return chain[::-1]


def follow(frames: Sequence[Sequence[Candidate]], scenes: Sequence[Scene]) -> list[Candidate | None]:
    """Select the most prominent person's detection in every frame.

    A person may be hidden or off screen for any number of frames. Tracking resumes at a detection whose position, size
    and look agree with the last one.

    Args:
        frames: Detections of each frame, in order of time.
        scenes: Summary of each frame.

    Returns:
        For each frame the person's detection, or None.
    """
    people = follow_all(frames, scenes, most=1)
    return people[0] if people else [None] * len(frames)


def follow_all(
    frames: Sequence[Sequence[Candidate]], scenes: Sequence[Scene], most: int | None = None
) -> list[list[Candidate | None]]:
    """Track one person after another, each among the remaining detections, until none is left.

    Args:
        frames: Detections of each frame, in order of time.
        scenes: Summary of each frame.
        most: Maximum number of people; None for all.

    Returns:
        For each person, the most prominent first, the detection in each frame, or None.
    """
    nodes = _Nodes(frames, scenes)
    free = np.ones(len(nodes.items), bool)
    people: list[list[Candidate | None]] = []
    while free.any() and (most is None or len(people) < most):
        chosen: list[Candidate | None] = [None] * len(frames)
        for node in nodes.best_chain(free):
            free[node] = False
            time, candidate = nodes.items[node]
            chosen[time] = candidate
        people.append(chosen)
    return people
