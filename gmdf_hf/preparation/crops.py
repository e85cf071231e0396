"""Encoded face crops of a record's frames."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from gmdf_hf.preparation.candidates import MIN_UPRIGHT_SCORE, best_score, best_turn, find_candidates, turned
from gmdf_hf.preparation.detectors import whole_picture
from gmdf_hf.preparation.faces import DETECTION_SIDE, Detector, Face, reduce_to
from gmdf_hf.preparation.geometry import crop_aligned, crop_box
from gmdf_hf.preparation.pictures import Lost
from gmdf_hf.preparation.tracking import Candidate, Scene, follow_all
from gmdf_hf.preparation.video import Frame

CROPS = ("box", "aligned")
FORMATS = ("jpeg", "png")
MIN_SHARE = 0.1  # of the frames; a person in fewer frames is a bystander or a false detection
MIN_COVERED = 0.1  # minimum share of a face box that the forgery mask covers


@dataclass(frozen=True)
class CropSettings:
    """Settings of face crops.

    Attributes:
        frames: Evenly spaced frames per video.
        crop: `box` (square, 1.3 times the face box) or `aligned` (to the ArcFace template).
        size: Side of a crop in pixels.
        format: `jpeg` (quality 95, full colour resolution) or `png`.

    Raises:
        ValueError: If a value is out of range.
    """

    frames: int = 32
    crop: str = "box"
    size: int = 224
    format: str = "jpeg"

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}, expected at least 1.")
        if self.crop not in CROPS:
            raise ValueError(f"crop is {self.crop!r}, expected one of {', '.join(CROPS)}.")
        if not 16 <= self.size <= 1024:
            raise ValueError(f"size is {self.size}, expected 16 to 1024 pixels.")
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}, expected one of {', '.join(FORMATS)}.")


@dataclass(frozen=True)
class Crop:
    """A face crop of one frame.

    Attributes:
        frame: Number of the frame.
        seconds: Time since the first frame; None if only the order is known.
        image: The encoded crop.
        hash: Perceptual hash of the crop.
        mask: Forgery mask of the crop, white on black, as PNG; None if the data set has no mask.
    """

    frame: int
    seconds: float | None
    image: bytes
    hash: int
    mask: bytes | None = None


@dataclass(frozen=True)
class Crops:
    """Result of one record.

    Attributes:
        rows: One crop per frame.
        lost: `(frame number or None for all, reason)` of requested frames without a row.
        people: Number of people in at least `MIN_SHARE` of the frames. With more than one person and no mask, the label
            is doubtful.
        turned: Counter-clockwise rotation of the frames, in degrees, at which the faces were found.
    """

    rows: list[Crop]
    lost: list[tuple[int | None, str]]
    people: int = 1
    turned: int = 0


@dataclass
class _Sight:
    """Intermediate state of a frame: face candidates, their crops, and the crops of the mask."""

    frame: int
    seconds: float | None
    candidates: list[Candidate]
    crops: list[Image.Image]
    masks: list[Image.Image] = field(default_factory=list)

    def place(self, candidate: Candidate) -> int:
        return next(place for place, other in enumerate(self.candidates) if other is candidate)


@dataclass
class _View:
    """All frames of a record, at a number of quarter turns."""

    sights: list[_Sight] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    lost: list[tuple[int | None, str]] = field(default_factory=list)
    small: list[np.ndarray] = field(default_factory=list)  # reduced frames, kept while no face is certain

    def best_score(self) -> float:
        return best_score([sight.candidates for sight in self.sights])


def make_crops(
    read: Callable[[], Iterable[Frame | Lost]],
    detector: Detector,
    settings: CropSettings,
    read_masks: Callable[[], Iterator[tuple[int, np.ndarray]]] | None = None,
) -> Crops:
    """Detect faces, track one person, and crop and encode that person's face in every frame.

    The person is the one covered by the forgery masks; without masks, the most prominent one. Frames without a certain
    face are searched at quarter turns, too. Pictures are freed once their candidate crops are cut, so memory never
    holds a whole video.

    Args:
        read: Function that yields frames in order of time, and `Lost` for unreadable ones; called again for a turn.
        detector: Face detector.
        settings: How to crop and encode.
        read_masks: Function that yields number and mask of frames with a mask, in order of time; None if the data set
            has no masks.
    """
    view, turns = _look(read, detector, settings, read_masks), 0
    if view.best_score() < MIN_UPRIGHT_SCORE and detector is not whole_picture:
        turns = best_turn(view.small, detector, view.best_score())
    if turns:
        view = _look(read, detector, settings, read_masks, turns)
    sights, lost = view.sights, view.lost
    people: list[list[Candidate | None]] = []
    if detector is not whole_picture:
        people = follow_all([sight.candidates for sight in sights], view.scenes)
    elif sights:  # face crops of any size
        people = [[sight.candidates[0] for sight in sights]]
    needed = math.ceil(MIN_SHARE * len(sights))
    seen = [sum(candidate is not None for candidate in person) for person in people]
    chosen, reason = _subject(people, seen, needed, read_masks is not None and detector is not whole_picture)
    rows = []
    for sight, candidate in zip(sights, chosen or [None] * len(sights), strict=True):
        if candidate is None:
            lost.append((sight.frame, "no face" if not sight.candidates else reason))
        else:
            place = sight.place(candidate)
            crop, of_mask = sight.crops[place], sight.masks[place] if sight.masks else None
            rows.append(
                Crop(
                    sight.frame,
                    sight.seconds,
                    _encode(crop, settings.format),
                    perceptual_hash(crop),
                    None if of_mask is None else _encode(of_mask, "png"),
                )
            )
    return Crops(rows, lost, sum(count >= needed for count in seen), 90 * turns)


def _look(
    read: Callable[[], Iterable[Frame | Lost]],
    detector: Detector,
    settings: CropSettings,
    read_masks: Callable[[], Iterator[tuple[int, np.ndarray]]] | None,
    turns: int = 0,
) -> _View:
    """Detect the faces of all frames, and cut them and their masks out."""
    view = _View()
    masks = iter(()) if read_masks is None else read_masks()
    mask = next(masks, None)
    for picture in read():
        if isinstance(picture, Lost):
            view.lost.append((picture.number, picture.reason))
            continue
        pixels = turned(picture.pixels, turns)
        found, summary = find_candidates(pixels, detector)
        image = Image.fromarray(pixels)
        crops = [_crop(image, candidate.face, settings) for candidate in found]
        sight = _Sight(picture.number, picture.seconds, found, crops)
        while mask is not None and mask[0] < picture.number:
            mask = next(masks, None)
        if mask is not None and mask[0] == picture.number:
            whole = Image.fromarray(turned(mask[1], turns)).resize(image.size, Image.Resampling.BILINEAR)
            sight.masks = [_crop(whole, candidate.face, settings) for candidate in found]
            sight.candidates = [replace(c, evidence=0.01 + _covered(whole, c.face)) for c in found]
        elif read_masks is not None:
            sight.candidates = [replace(candidate, evidence=0.01) for candidate in found]
        view.sights.append(sight)
        view.scenes.append(summary)
        if view.best_score() < MIN_UPRIGHT_SCORE:
            view.small.append(reduce_to(picture.pixels, DETECTION_SIDE)[0])
    return view


def _subject(
    people: list[list[Candidate | None]], seen: list[int], needed: int, masked: bool
) -> tuple[list[Candidate | None] | None, str]:
    """Return the selected person, and the reason for missing rows of frames without that person."""
    if not people:
        return None, "no face"
    if seen[0] < needed:
        return None, f"nobody is seen in {MIN_SHARE:.0%} of the frames, the most in {seen[0]}"
    if masked and not any(c is not None and c.evidence > MIN_COVERED for c in people[0]):
        return None, "no face meets the mask of what was forged"
    return people[0], "no face of the followed person"


def _covered(mask: Image.Image, face: Face) -> float:
    """Share of a face box that a mask covers."""
    left, top, right, bottom = (round(value) for value in face.box)
    box = (max(left, 0), max(top, 0), max(right, left + 1, 1), max(bottom, top + 1, 1))
    return float((np.asarray(mask.crop(box)) > 127).mean())


def perceptual_hash(image: Image.Image) -> int:
    """Return a 64-bit perceptual hash: signs of the brightness differences along 8 rows (dHash)."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _crop(image: Image.Image, face: Face, settings: CropSettings) -> Image.Image:
    if settings.crop == "aligned":
        if face.landmarks is None:
            raise ValueError("An aligned crop needs the five landmarks of the face, found none.")
        return crop_aligned(image, face.landmarks, settings.size)
    return crop_box(image, face.box, settings.size)


def _encode(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    # Chroma is kept at full resolution, as it contains traces of manipulation.
    options = {"quality": 95, "subsampling": 0} if format == "jpeg" else {"compress_level": 4}
    image.save(buffer, format, **options)
    return buffer.getvalue()
