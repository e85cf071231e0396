"""Face detection and person tracking for the pipeline, with the same detection and crops as `prepare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image

from gmdf_hf.preparation.candidates import MIN_UPRIGHT_SCORE, best_score, best_turn, find_candidates, turned
from gmdf_hf.preparation.detectors import load_detector
from gmdf_hf.preparation.faces import DETECTION_SIDE, Detector, reduce_to
from gmdf_hf.preparation.geometry import crop_box, square_box
from gmdf_hf.preparation.media import Media
from gmdf_hf.preparation.tracking import Candidate, Scene, follow_all
from gmdf_hf.preparation.video import Frame

# A detection in a single frame of a video counts as a person only from this score; others are unassigned.
MIN_SINGLE_SCORE = 0.8
MANY_FRAMES = 8  # from this number of frames, a person is expected in more than one
FRAMES_AROUND = 4  # read on each side of a single detection

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class FoundFace:
    """A face in one frame.

    Attributes:
        frame: Number of the frame; 0 for a picture.
        seconds: Time of the frame; None if only the order of frames is known.
        person: Number of the person, constant within a shot; 0 is the most prominent; None for an unassigned detection.
        box: Face box `(left, top, right, bottom)` in pixels of the frame.
        crop_box: The square crop for the forgery detector, in pixels of the frame.
        detection_score: Confidence of the face detector.
        crop: The crop, rotated upright.
        turned: Counter-clockwise rotation of the frame, in degrees, at which the face was found.
    """

    frame: int
    seconds: float | None
    person: int | None
    box: Box
    crop_box: tuple[int, int, int, int]
    detection_score: float
    crop: Image.Image
    turned: int = 0


@dataclass
class FoundPeople:
    """All faces of an input.

    Attributes:
        faces: Faces of people, in the order of persons, then of frames.
        unassigned: Unassigned detections: in a single frame, with a low score.
        frames_read: Number of frames read.
        notes: Warnings for the user.
    """

    faces: list[FoundFace] = field(default_factory=list)
    unassigned: list[FoundFace] = field(default_factory=list)
    frames_read: int = 0
    notes: list[str] = field(default_factory=list)


FaceFinder = Callable[[Media, int], FoundPeople]


def load_finder(detector: str, weights: str | None = None) -> FaceFinder:
    """Return `find_people` bound to a detector (see `load_detector`)."""
    return partial(find_people, load_detector(detector, weights))


def find_people(detector: Detector, media: Media, size: int) -> FoundPeople:
    """Detect faces, track each person through the frames, and crop the faces.

    Every detected face belongs to a person or is unassigned. A person has detections in two frames of a shot, or a
    single one with a high score; in a picture, every face is a person. If there are only weak single detections, the
    frames around them are read, too.

    Args:
        detector: Face detector.
        media: Source of the frames; pictures are freed once the faces are cropped.
        size: Side of a crop in pixels.
    """
    looked = _Looked(detector, size)
    looked.look_at(media.read(None))
    found = FoundPeople(notes=media.report.notes)
    turns = best_turn(looked.small, detector, best_score(looked.candidates)) if looked.is_doubtful else 0
    if turns:
        looked = _Looked(detector, size, turns)
        looked.look_at(media.read(None))
        found.notes.append(
            f"Faces are not upright: found after turning the picture by {90 * turns} degrees counter-clockwise."
        )
    people, hits = looked.people()
    if hits and not people:
        numbers = sorted(frame.number for frame in looked.frames)
        around = sorted({n for hit in hits for n in _around(looked.frames[hit[0]].number, numbers)} - set(numbers))
        if around:
            looked.look_at(media.read(around))
            found.notes.append(f"{len(around)} more frames were read around weak hits of the face detector.")
            people, hits = looked.people()
    found.frames_read = len(looked.frames)
    for person, chain in enumerate(people):
        found.faces += [looked.face(time, candidate, person) for time, candidate in chain]
    found.unassigned = [looked.face(time, candidate, None) for time, candidate in hits]
    return found


def _around(number: int, numbers: Sequence[int]) -> list[int]:
    """Frame numbers around a frame, a few on each side, up to its neighbours among the read frames."""
    place = numbers.index(number)
    before = numbers[place - 1] if place else number
    after = numbers[place + 1] if place + 1 < len(numbers) else number
    steps = range(1, FRAMES_AROUND + 1)
    return [round(number + (end - number) * step / (FRAMES_AROUND + 1)) for end in (before, after) for step in steps]


@dataclass(frozen=True)
class _Seen:
    """Retained data of a frame."""

    number: int
    seconds: float | None


class _Looked:
    """Face candidates and crops of all frames read so far, in order of time.

    Args:
        detector: Face detector.
        size: Side of a crop in pixels.
        turns: Counter-clockwise quarter turns of the frames before detection.
    """

    def __init__(self, detector: Detector, size: int, turns: int = 0):
        self.detector, self.size, self.turns = detector, size, turns
        self.frames: list[_Seen] = []
        self.candidates: list[list[Candidate]] = []
        self.scenes: list[Scene] = []
        self.small: list[np.ndarray] = []  # reduced frames, kept while no face is found
        self.cut: dict[int, tuple[Box, tuple[int, int, int, int], Image.Image]] = {}

    def look_at(self, frames: Iterator[Frame]) -> None:
        """Detect the faces of further frames."""
        for frame in frames:
            pixels = turned(frame.pixels, self.turns)
            candidates, scene = find_candidates(pixels, self.detector)
            image = Image.fromarray(pixels)
            for candidate in candidates:
                box = candidate.face.box
                place = turn_back(box, image.size, self.turns)
                left, top, right, bottom = turn_back(square_box(box, image.size), image.size, self.turns)
                square = (int(left), int(top), int(right), int(bottom))
                self.cut[id(candidate)] = (place, square, crop_box(image, box, self.size))
            self.frames.append(_Seen(frame.number, frame.seconds))
            self.candidates.append(candidates)
            self.scenes.append(scene)
            if self.is_doubtful:
                self.small.append(reduce_to(frame.pixels, DETECTION_SIDE)[0])
        order = sorted(range(len(self.frames)), key=lambda place: self.frames[place].number)
        self.frames = [self.frames[place] for place in order]
        self.candidates = [self.candidates[place] for place in order]
        self.scenes = [self.scenes[place] for place in order]

    @property
    def is_doubtful(self) -> bool:
        """Whether no face was found with certainty so far: the frames may be turned."""
        return best_score(self.candidates) < MIN_UPRIGHT_SCORE

    def people(self) -> tuple[list[list[tuple[int, Candidate]]], list[tuple[int, Candidate]]]:
        """Faces of each person, and unassigned detections; both with the index of their frame."""
        chains = [
            [(time, candidate) for time, candidate in enumerate(chosen) if candidate is not None]
            for chosen in follow_all(self.candidates, self.scenes)
        ]
        many = len(self.frames) >= MANY_FRAMES
        weak = [many and len(chain) == 1 and chain[0][1].face.score < MIN_SINGLE_SCORE for chain in chains]
        people = [chain for chain, is_weak in zip(chains, weak, strict=True) if not is_weak]
        return people, [chain[0] for chain, is_weak in zip(chains, weak, strict=True) if is_weak]

    def face(self, place: int, candidate: Candidate, person: int | None) -> FoundFace:
        """Convert a candidate to a result."""
        box, square, crop = self.cut[id(candidate)]
        seen, score = self.frames[place], candidate.face.score
        return FoundFace(seen.number, seen.seconds, person, box, square, score, crop, 90 * self.turns)


def turn_back(box: Sequence[float], size: tuple[int, int], turns: int) -> Box:
    """Map a box in a picture rotated counter-clockwise back to the original picture.

    Args:
        box: `(left, top, right, bottom)` in the rotated picture.
        size: Width and height of the rotated picture.
        turns: Number of quarter turns.
    """
    left, top, right, bottom = (float(value) for value in box)
    width, height = size
    for _ in range(turns % 4):  # each step rotates the picture clockwise by 90 degrees
        left, top, right, bottom = height - bottom, left, height - top, right
        width, height = height, width
    return left, top, right, bottom
