"""Encoded face crops of a record's frames."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from gmdf_hf.common.images import ImageError, open_image
from gmdf_hf.preparation import video
from gmdf_hf.preparation.archives import is_archive, read_members
from gmdf_hf.preparation.detectors import whole_picture
from gmdf_hf.preparation.faces import DETECTION_SIDE, Detector, Face, reduce_to
from gmdf_hf.preparation.geometry import crop_aligned, crop_box
from gmdf_hf.preparation.media import open_media
from gmdf_hf.preparation.sources.record import Record
from gmdf_hf.preparation.tracking import Candidate, Scene, follow_all, look, scene
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
class Lost:
    """A requested frame that cannot be read.

    Attributes:
        number: Frame number.
        reason: Error message.
    """

    number: int
    reason: str


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
    """

    rows: list[Crop]
    lost: list[tuple[int | None, str]]
    people: int = 1


def frame_numbers(members: tuple[str, ...]) -> list[int]:
    """Return the frame number of each member: its name if all names are distinct numbers, else its position."""
    stems = [name.rsplit("/", 1)[-1].rsplit(".", 1)[0] for name in members]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit() and len(stem) < 10]
    return numbers if len(set(numbers)) == len(members) else list(range(len(members)))


def wanted_members(record: Record, count: int) -> dict[str, int]:
    """Return name and number of at most `count` evenly spaced members of a record."""
    numbers = frame_numbers(record.members)
    return {record.members[i]: numbers[i] for i in video.even_indices(len(record.members), count)}


def read_pictures(record: Record, count: int) -> Iterator[Frame | Lost]:
    """Yield the frames of a record, or `Lost` for unreadable ones.

    Raises:
        VideoError: If the record is a video that cannot be read.
        ValueError: If the record's frames are in an archive (see `read_archive`).
    """
    if is_archive(record.path):
        raise ValueError(f"{record.path} is an archive, expected a file or folder.")
    if record.members:
        for name, number in wanted_members(record, count).items():
            yield _picture(record.path / name, number)
        return
    media = open_media(record.path, count)
    try:
        yield from media.read(None)
    except ImageError as error:
        yield Lost(0, str(error))
    for number in media.report.lost:
        yield Lost(number, f"{record.path}: damaged frame.")


def read_masks(record: Record, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield number and mask of frames with a mask: shape `(height, width)`, type uint8, white where forged.

    Raises:
        VideoError: If the masks are a video that cannot be read.
    """
    if record.mask_members:
        masks = dict(zip(record.members, record.mask_members, strict=True))
        for name, number in wanted_members(record, count).items():
            if masks[name]:
                picture = _picture(record.path / masks[name], number)
                if isinstance(picture, Frame):
                    yield number, picture.pixels.max(-1)
    elif record.mask is not None:
        total = len(video.index_video(record.path).times)
        wanted = video.even_indices(total, count)  # same frames as of the video; a mask may be some frames shorter
        for frame in open_media(record.mask, count, allow_cut=True).read(wanted):
            yield frame.number, frame.pixels.max(-1)


def read_archive(records: list[Record], count: int) -> Iterator[tuple[Record, list[Frame | Lost]]]:
    """Yield records of one archive with their pictures in a single pass, each after its last frame.

    Raises:
        ArchiveError: If the archive is damaged or unsafe.
    """
    wanted = {
        name: (index, number) for index, r in enumerate(records) for name, number in wanted_members(r, count).items()
    }
    waiting: dict[int, list[Frame | Lost]] = {}
    left = [len(wanted_members(record, count)) for record in records]
    for name, content in read_members(records[0].path, wanted):
        index, number = wanted[name]
        waiting.setdefault(index, []).append(_picture(content, number, f"{records[0].path}: {name}"))
        left[index] -= 1
        if not left[index]:
            yield records[index], sorted(waiting.pop(index), key=lambda picture: picture.number)


@dataclass
class _Sight:
    """Intermediate state of a frame: face candidates, their crops, and the crops of the mask."""

    frame: Frame
    candidates: list[Candidate]
    crops: list[Image.Image]
    masks: list[Image.Image] = field(default_factory=list)

    def place(self, candidate: Candidate) -> int:
        return next(place for place, other in enumerate(self.candidates) if other is candidate)


def make_crops(
    pictures: Iterable[Frame | Lost],
    detector: Detector,
    settings: CropSettings,
    masks: Iterator[tuple[int, np.ndarray]] | None = None,
) -> Crops:
    """Detect faces, track one person, and crop and encode that person's face in every frame.

    The person is the one covered by the forgery masks; without masks, the most prominent one. Pictures are freed once
    their candidate crops are cut, so memory never holds a whole video.

    Args:
        pictures: Frames in order of time, and `Lost` for unreadable ones.
        detector: Face detector.
        settings: How to crop and encode.
        masks: Number and mask of frames with a mask, in order of time; None if the data set has no masks.
    """
    sights: list[_Sight] = []
    scenes: list[Scene] = []
    lost: list[tuple[int | None, str]] = []
    mask = next(masks, None) if masks is not None else None
    for picture in pictures:
        if isinstance(picture, Lost):
            lost.append((picture.number, picture.reason))
            continue
        found, summary = find_candidates(picture.pixels, detector)
        image = Image.fromarray(picture.pixels)
        sight = _Sight(picture, found, [_crop(image, candidate.face, settings) for candidate in found])
        while masks is not None and mask is not None and mask[0] < picture.number:
            mask = next(masks, None)
        if mask is not None and mask[0] == picture.number:
            whole = Image.fromarray(mask[1]).resize(image.size, Image.Resampling.BILINEAR)
            sight.masks = [_crop(whole, candidate.face, settings) for candidate in found]
            sight.candidates = [replace(c, evidence=0.01 + _covered(whole, c.face)) for c in found]
        elif masks is not None:
            sight.candidates = [replace(candidate, evidence=0.01) for candidate in found]
        sights.append(sight)
        scenes.append(summary)
    people: list[list[Candidate | None]] = []
    if detector is not whole_picture:
        people = follow_all([sight.candidates for sight in sights], scenes)
    elif sights:  # face crops of any size
        people = [[sight.candidates[0] for sight in sights]]
    needed = math.ceil(MIN_SHARE * len(sights))
    seen = [sum(candidate is not None for candidate in person) for person in people]
    chosen, reason = _subject(people, seen, needed, masks is not None and detector is not whole_picture)
    rows = []
    for sight, candidate in zip(sights, chosen or [None] * len(sights), strict=True):
        if candidate is None:
            lost.append((sight.frame.number, "no face" if not sight.candidates else reason))
        else:
            place = sight.place(candidate)
            crop, of_mask = sight.crops[place], sight.masks[place] if sight.masks else None
            rows.append(
                Crop(
                    sight.frame.number,
                    sight.frame.seconds,
                    _encode(crop, settings.format),
                    perceptual_hash(crop),
                    None if of_mask is None else _encode(of_mask, "png"),
                )
            )
    return Crops(rows, lost, sum(count >= needed for count in seen))


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


def find_candidates(picture: np.ndarray, detector: Detector) -> tuple[list[Candidate], Scene]:
    """Find the faces in an RGB picture, largest first, with the features for tracking."""
    small, factor = reduce_to(picture, DETECTION_SIDE)
    faces = sorted(detector(small), key=lambda face: -face.side * face.score)
    image = Image.fromarray(picture)
    own_pixels = [face.scaled(factor) for face in faces]
    # Appearance is compared on the box crop: an aligned crop shows less context and rotates with every landmark.
    candidates = [Candidate(face, look(crop_box(image, face.box, 64))) for face in own_pixels]
    return candidates, scene(Image.fromarray(small))


def perceptual_hash(image: Image.Image) -> int:
    """Return a 64-bit perceptual hash: signs of the brightness differences along 8 rows (dHash)."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _picture(source: str | Path | bytes, number: int, name: str | None = None) -> Frame | Lost:
    try:
        return Frame(number, None, np.asarray(open_image(source, name)))
    except ImageError as error:
        return Lost(number, str(error))


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
