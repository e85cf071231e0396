"""Inputs of the pipeline - paths, addresses, pictures, arrays, videos - as frames of pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gmdf_hf.modeling.images_gmdf import SUFFIXES as IMAGE_SUFFIXES
from gmdf_hf.modeling.images_gmdf import ImageError, open_image
from gmdf_hf.modeling.pipeline_gmdf import frames_of
from gmdf_hf.preparation.video import SUFFIXES as VIDEO_SUFFIXES
from gmdf_hf.preparation.video import VideoError, read_frames
from gmdf_hf.serving.download import DownloadError, downloaded

# What may be wrong with one input; anything else is a mistake in the program or its setting.
INPUT_ERRORS = (ImageError, VideoError, DownloadError)


def is_url(source: object) -> bool:
    """Whether an input is an address (of any kind: `file://` is one, and is refused later)."""
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def read_input(
    source: Any, num_frames: int, private_urls: bool = False, max_seconds: float | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield number and upright RGB picture of shape `(height, width, 3)` of an input's frames; a picture has one.

    Args:
        source: Path or address of a picture or video, or what `frames_of` takes: a `PIL.Image`, an array of shape
            `(height, width[, 3])` and type uint8 (RGB), or the frames of a video.
        num_frames: Frames to take of a video file, spread evenly over all of it.
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
    else:
        yield from frames_of(source)


def _read_file(path: Path, name: str, num_frames: int, max_seconds: float | None) -> Iterator[tuple[int, np.ndarray]]:
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        try:
            picture = np.asarray(open_image(path, name))
        except ImageError:
            # A URL may lack a suffix; a file that has one is what its suffix says.
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
