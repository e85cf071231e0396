"""The frames and forgery masks of a record, from a video, a folder of images or an archive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmdf_hf.common.images import ImageError, open_image
from gmdf_hf.preparation import video
from gmdf_hf.preparation.archives import is_archive, read_members
from gmdf_hf.preparation.media import open_media
from gmdf_hf.preparation.sources.record import Record
from gmdf_hf.preparation.video import Frame


@dataclass(frozen=True)
class Lost:
    """A requested frame that cannot be read.

    Attributes:
        number: Frame number.
        reason: Error message.
    """

    number: int
    reason: str


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


def _picture(source: str | Path | bytes, number: int, name: str | None = None) -> Frame | Lost:
    try:
        return Frame(number, None, np.asarray(open_image(source, name)))
    except ImageError as error:
        return Lost(number, str(error))
