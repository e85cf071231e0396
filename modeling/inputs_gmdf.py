"""What people ask about - a path, an address, a picture, an array, a video - as frames of pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from .download_gmdf import DownloadError, downloaded
from .images_gmdf import SUFFIXES as IMAGE_SUFFIXES
from .images_gmdf import ImageError, open_image, upright_rgb
from .video_gmdf import SUFFIXES as VIDEO_SUFFIXES
from .video_gmdf import VideoError, read_frames

# What may be wrong with one input; anything else is a mistake in the program or its setting.
INPUT_ERRORS = (ImageError, VideoError, DownloadError)


def is_url(source: object) -> bool:
    """Whether an input is an address (of any kind: `file://` is one, and is refused later)."""
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def name_of(source: object) -> str:
    """What messages call an input."""
    return str(source) if isinstance(source, (str, os.PathLike)) else f"<{type(source).__name__}>"


def read_input(
    source: object, num_frames: int, private_urls: bool = False, max_seconds: float | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield number and upright RGB picture of shape `(height, width, 3)` of an input's frames; a picture has one.

    Args:
        source: Path or address of a picture or video, `PIL.Image`, or array of shape `(height, width[, 3])` and
            type uint8 (RGB).
        num_frames: Frames to take of a video, spread evenly over all of it.
        private_urls: See `downloaded`.
        max_seconds: See `read_frames`.

    Raises:
        ImageError: If a picture cannot be read, or the input is nothing of the above.
        VideoError: If a video cannot be read.
        DownloadError: If an address cannot be fetched.
    """
    if is_url(source):
        with downloaded(source, private_urls) as path:
            yield from _read_file(path, source, num_frames, max_seconds)
    elif isinstance(source, (str, os.PathLike)):
        yield from _read_file(Path(source), str(source), num_frames, max_seconds)
    elif isinstance(source, Image.Image):
        yield 0, np.asarray(_pillow(source))
    elif isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] != 3):
            raise ImageError(
                f"An array must be of type uint8 and shape (height, width) or (height, width, 3), "
                f"found {source.dtype} {source.shape}."
            )
        yield 0, np.asarray(_pillow(Image.fromarray(source)))
    else:
        raise ImageError(f"Expected a path, an address, a PIL image or an array, found {type(source).__name__}.")


def _pillow(image: Image.Image) -> Image.Image:
    try:
        return upright_rgb(image, f"<{type(image).__name__}>")
    except OSError as error:  # the file behind it is damaged
        raise ImageError(f"<{type(image).__name__}>: damaged image ({error}).") from error


def _read_file(path: Path, name: str, num_frames: int, max_seconds: float | None) -> Iterator[tuple[int, np.ndarray]]:
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        try:
            picture = np.asarray(open_image(path, name))
        except ImageError:
            # An address need not tell by its end what it leads to; a file that does is taken at its word.
            if suffix in IMAGE_SUFFIXES or not path.is_file() or not _looks_like_video(path):
                raise
        else:
            yield 0, picture
            return
    try:
        yield from read_frames(path, num_frames, max_seconds)
    except VideoError as error:
        raise VideoError(str(error).replace(str(path), name)) from error


def _looks_like_video(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    box = head[4:8] == b"ftyp" and head[8:11] not in (b"hei", b"mif", b"avi")  # not HEIF nor AVIF pictures
    return box or head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:11] == b"AVI")
