"""From a record to the encoded face crops of its frames."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gmdf_hf.modeling import images_gmdf as images
from gmdf_hf.modeling.images_gmdf import ImageError, open_image
from gmdf_hf.preparation import video
from gmdf_hf.preparation.archives import is_archive, read_members
from gmdf_hf.preparation.detectors import whole_picture
from gmdf_hf.preparation.faces import DETECTION_SIDE, Detector, Face, reduce_to
from gmdf_hf.preparation.geometry import crop_aligned, crop_box
from gmdf_hf.preparation.sources.record import Record
from gmdf_hf.preparation.tracking import Candidate, Scene, follow, look, scene

CROPS = ("box", "aligned")
FORMATS = ("jpeg", "png")
# More faces than this in one frame are a crowd; the largest are looked at.
MAX_FACES = 5


@dataclass(frozen=True)
class CropSettings:
    """Settings of face crops.

    Attributes:
        frames: Frames per video, spread evenly over all of it.
        crop: `box`, widened 1.3 times and square, or `aligned` to the ArcFace template.
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
class Crops:
    """Result of one record.

    Attributes:
        rows: `(frame number, encoded crop, perceptual hash)`.
        lost: `(frame number or None for all, reason)` of what was wanted and is not among the rows.
    """

    rows: list[tuple[int, bytes, int]]
    lost: list[tuple[int | None, str]]


def frame_numbers(members: tuple[str, ...]) -> list[int]:
    """Return the frame number of each member: its name if all are different numbers, its position otherwise."""
    stems = [name.rsplit("/", 1)[-1].rsplit(".", 1)[0] for name in members]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit() and len(stem) < 10]
    return numbers if len(set(numbers)) == len(members) else list(range(len(members)))


def wanted_members(record: Record, count: int) -> dict[str, int]:
    """Return name and number of at most `count` members of a record, spread evenly."""
    numbers = frame_numbers(record.members)
    return {record.members[i]: numbers[i] for i in video.even_indices(len(record.members), count)}


def read_pictures(record: Record, count: int) -> Iterator[tuple[int, np.ndarray | ImageError]]:
    """Yield number and RGB picture, or what is wrong with it, of a record's frames.

    Raises:
        VideoError: If the record is a video that cannot be read.
        ValueError: If the record's frames are in an archive (see `read_archive`).
    """
    if is_archive(record.path):
        raise ValueError(f"{record.path} is an archive, expected a file or folder.")
    if record.members:
        for name, number in wanted_members(record, count).items():
            yield number, _picture(record.path / name)
    elif record.path.suffix.lower() in images.SUFFIXES:
        yield 0, _picture(record.path)
    else:
        yield from video.read_frames(record.path, count)


def read_archive(
    records: list[Record], count: int
) -> Iterator[tuple[Record, list[tuple[int, np.ndarray | ImageError]]]]:
    """Yield records of one archive with their pictures, reading it once; a record comes when its last frame was read.

    Raises:
        ArchiveError: If the archive is damaged or not to be trusted.
    """
    wanted = {
        name: (index, number) for index, r in enumerate(records) for name, number in wanted_members(r, count).items()
    }
    waiting: dict[int, list[tuple[int, np.ndarray | ImageError]]] = {}
    left = [len(wanted_members(record, count)) for record in records]
    for name, content in read_members(records[0].path, wanted):
        index, number = wanted[name]
        waiting.setdefault(index, []).append((number, _picture(content, f"{records[0].path}: {name}")))
        left[index] -= 1
        if not left[index]:
            yield records[index], sorted(waiting.pop(index), key=lambda picture: picture[0])


def make_crops(
    pictures: Iterable[tuple[int, np.ndarray | ImageError]], detector: Detector, settings: CropSettings
) -> Crops:
    """Detect faces, follow one person, and cut and encode that face in every frame.

    Pictures are dropped as soon as their candidate crops are cut, so memory holds crops and never a whole video.

    Args:
        pictures: Frame numbers with RGB pictures of shape `(height, width, 3)` or the error that reading gave.
        detector: Face detector.
        settings: How to crop and encode.
    """
    numbers: list[int] = []
    candidates: list[list[Candidate]] = []
    crops: list[list[Image.Image]] = []
    scenes: list[Scene] = []
    lost: list[tuple[int | None, str]] = []
    for number, picture in pictures:
        if isinstance(picture, ImageError):
            lost.append((number, str(picture)))
            continue
        found, summary = find_candidates(picture, detector)
        image = Image.fromarray(picture)
        numbers.append(number)
        crops.append([_crop(image, candidate.face, settings) for candidate in found])
        candidates.append(found)
        scenes.append(summary)
    # Pictures that are crops of one face already may be of any size.
    chosen = [frame[0] for frame in candidates] if detector is whole_picture else follow(candidates, scenes)
    rows = []
    for number, frame, cut, candidate in zip(numbers, candidates, crops, chosen, strict=True):
        if candidate is None:
            lost.append((number, "no face" if not frame else "no face of the followed person"))
        else:
            crop = cut[next(index for index, other in enumerate(frame) if other is candidate)]
            rows.append((number, _encode(crop, settings.format), perceptual_hash(crop)))
    return Crops(rows, lost)


def find_candidates(picture: np.ndarray, detector: Detector) -> tuple[list[Candidate], Scene]:
    """Find at most `MAX_FACES` faces in an RGB picture, the largest first, with what following them needs."""
    small, factor = reduce_to(picture, DETECTION_SIDE)
    faces = sorted(detector(small), key=lambda face: -face.side * face.score)[:MAX_FACES]
    image = Image.fromarray(picture)
    own_pixels = [face.scaled(factor) for face in faces]
    # Looks are compared on the box: an aligned crop shows less around the face and is turned with every landmark.
    candidates = [Candidate(face, look(crop_box(image, face.box, 64))) for face in own_pixels]
    return candidates, scene(Image.fromarray(small))


def perceptual_hash(image: Image.Image) -> int:
    """Return 64 bits that near-duplicate pictures share: signs of the brightness steps along 8 rows (dHash)."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _picture(source: str | Path | bytes, name: str | None = None) -> np.ndarray | ImageError:
    try:
        return np.asarray(open_image(source, name))
    except ImageError as error:
        return error


def _crop(image: Image.Image, face: Face, settings: CropSettings) -> Image.Image:
    if settings.crop == "aligned":
        if face.landmarks is None:
            raise ValueError("An aligned crop needs the five landmarks of the face, found none.")
        return crop_aligned(image, face.landmarks, settings.size)
    return crop_box(image, face.box, settings.size)


def _encode(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    # Chroma is kept at full resolution: traces of manipulation are in it.
    options = {"quality": 95, "subsampling": 0} if format == "jpeg" else {"compress_level": 4}
    image.save(buffer, format, **options)
    return buffer.getvalue()
