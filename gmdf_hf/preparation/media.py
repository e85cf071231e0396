"""Media files as frames: videos, animations and pictures, recognised by content."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from gmdf_hf.common.images import FORMATS, ImageError, check_size, open_image, read_bytes, upright_rgb
from gmdf_hf.preparation import video
from gmdf_hf.preparation.video import Frame, ReadReport, VideoError, even_indices, read_frames

HEAD_BYTES = 1024
MAX_ANIMATION_PIXELS = 10_000_000_000  # total over all frames: half a minute of 4K
ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")
SHOWN_MILLISECONDS = 100  # duration of an animation's frame without one, as in browsers
# Brands of ISO media files that hold pictures.
_PICTURE_BRANDS = (b"hei", b"hev", b"mif", b"msf", b"avi")
_PICTURE_HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP", b"P5", b"P6")
# Matroska, Flash, ASF, MPEG program and video streams, Ogg, MXF, DV, YUV4MPEG, and H.264 or H.265 without a container.
_VIDEO_HEADS = (
    *(b"\x1aE\xdf\xa3", b"FLV", b"0&\xb2u", b"\0\0\1\xba", b"\0\0\1\xb3", b"OggS", b"\x06\x0e\x2b\x34"),
    *(b"\x1f\x07\0", b"YUV4MPEG2 ", b"\0\0\0\1"),
)


@dataclass(frozen=True, eq=False)
class Media:
    """A source of frames that can be read repeatedly.

    Attributes:
        read: Function that yields the frames with the given numbers; evenly spaced frames for None.
        report: Errors and warnings so far.
    """

    read: Callable[[Sequence[int] | None], Iterator[Frame]]
    report: ReadReport = field(default_factory=ReadReport)


def kind_of(path: str | Path) -> str | None:
    """Return `video` or `picture` by a file's first bytes, None for other files."""
    if not os.path.isfile(path):  # reading a named pipe or device may never end
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    if head.startswith(_PICTURE_HEADS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "picture"
    if head[4:8] == b"ftyp":
        return "picture" if head[8:11] in _PICTURE_BRANDS else "video"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip", b"moof"):  # QuickTime without a brand
        return "video"
    if head.startswith(_VIDEO_HEADS):
        return "video"
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return "video"
    return "video" if _is_transport_stream(head) else None


def _is_transport_stream(head: bytes) -> bool:
    """Whether transport packets of 188 bytes, or 192 with timestamps (AVCHD), start near the beginning."""
    return any(
        len(head) > start + 3 * size and all(head[start + n * size] == 0x47 for n in range(4))
        for size in (188, 192)
        for start in range(size)
    )


def open_media(
    path: str | Path, count: int, max_seconds: float | None = None, name: str | None = None, allow_cut: bool = False
) -> Media:
    """Open a video, animation or picture; nothing is read yet.

    Args:
        path: The file.
        count: Number of evenly spaced frames to read from a video or animation.
        max_seconds: See `read_frames`.
        name: Name of the file in messages; the path when None.
        allow_cut: See `read_frames`.

    Returns:
        Frames, in order of time. Reading raises `VideoError` or `ImageError`.
    """
    report = ReadReport()
    kind = kind_of(path)
    is_video = kind == "video" or (kind is None and Path(path).suffix.lower() in video.SUFFIXES)

    def read(numbers: Sequence[int] | None = None) -> Iterator[Frame]:
        if is_video:
            try:
                yield from read_frames(path, count, max_seconds, numbers, report, allow_cut)
            except VideoError as error:
                raise VideoError(str(error).replace(str(path), name or str(path))) from error
            return
        try:
            yield from read_picture(path, count, max_seconds, name, numbers)
        except ImageError as error:
            if kind is None and isinstance(error.__cause__, UnidentifiedImageError) and Path(path).stat().st_size:
                raise ImageError(
                    f"{error} Nor is it a video: expected MP4, MOV, Matroska, AVI, MPEG, ASF, FLV, Ogg or MXF."
                ) from error
            raise

    return Media(read, report)


def read_picture(
    path: str | Path,
    count: int = 1,
    max_seconds: float | None = None,
    name: str | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[Frame]:
    """Yield the single frame of a picture, or evenly spaced frames of an animation (GIF, WebP, PNG, AVIF).

    Raises:
        ImageError: If it cannot be read (see `open_image`), or exceeds the limits on frames or pixels.
    """
    name = name or str(path)
    data = read_bytes(Path(path), name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            animated = image.format in ANIMATED_FORMATS and getattr(image, "n_frames", 1) > 1
            if animated:
                check_size(image, name)
                yield from _read_animation(image, count, max_seconds, name, numbers)
                return
    except ImageError:
        raise
    except Exception:  # damaged: `open_image` raises a specific error
        animated = False
    yield Frame(0, 0.0, np.asarray(open_image(data, name)))


def _read_animation(
    image: Image.Image, count: int, max_seconds: float | None, name: str, numbers: Sequence[int] | None
) -> Iterator[Frame]:
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    first = int(bool(image.info.get("default_image")))  # a PNG may start with a fallback picture outside the animation
    total = getattr(image, "n_frames", 1) - first
    if total > video.MAX_FRAMES or total * image.width * image.height > MAX_ANIMATION_PIXELS:
        raise ImageError(
            f"{name}: an animation of {total} frames of {image.width}x{image.height} pixels, expected at most "
            f"{MAX_ANIMATION_PIXELS} pixels in all."
        )
    wanted = set(even_indices(total, count) if numbers is None else numbers)
    seconds = 0.0
    for number in range(total):
        if time.monotonic() > deadline:
            raise ImageError(f"{name}: not read within {max_seconds:g} seconds, {total} frames.")
        try:
            image.seek(number + first)
            if number in wanted:
                yield Frame(number, seconds, np.asarray(upright_rgb(image.copy(), name)))
        except (OSError, EOFError, SyntaxError, ValueError) as error:
            raise ImageError(f"{name}: damaged animation, frame {number} of {total} ({error}).") from error
        seconds += (image.info.get("duration") or SHOWN_MILLISECONDS) / 1000
