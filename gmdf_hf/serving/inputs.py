"""Inputs of the pipeline (paths, URLs, pictures, arrays, videos) as frames of pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmdf_hf.common.images import ImageError, open_image, upright_rgb
from gmdf_hf.modeling.loading_gmdf import BrokenModelError
from gmdf_hf.preparation.media import Media, open_media
from gmdf_hf.preparation.video import Frame, VideoError
from gmdf_hf.serving.download import DownloadError, downloaded

# Errors of a single input; other exceptions are errors of the program or its settings.
INPUT_ERRORS = (ImageError, VideoError, DownloadError, BrokenModelError)


def is_url(source: object) -> bool:
    """Whether an input is a URL of any scheme; `file://` counts and is rejected later."""
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


@contextmanager
def open_input(
    source: Any,
    num_frames: int,
    private_urls: bool = False,
    max_seconds: float | None = None,
    open_file: Callable[..., Media] = open_media,
) -> Iterator[Media]:
    """Open an input; its frames can be read inside the block.

    A truncated video file is read up to its end; the report of the media then says so.

    Args:
        source: Path or URL of a picture or video, or a picture or its frames: a `PIL.Image`, an array of shape
            `(height, width[, 3])` and type uint8 (RGB), or the frames of a video.
        num_frames: Number of frames to read from a video file, evenly spaced.
        private_urls: See `downloaded`.
        max_seconds: See `read_frames`.
        open_file: `open_media`, or a replacement such as `IsolatedReader.open`.

    Raises:
        ImageError: If a picture cannot be read, or the input has another type.
        VideoError: If a video cannot be read.
        DownloadError: If a URL cannot be fetched.
    """
    if is_url(source):
        with downloaded(source, private_urls) as path:
            yield open_file(path, num_frames, max_seconds, source, allow_cut=True)
    elif isinstance(source, (str, os.PathLike)):
        yield open_file(Path(source), num_frames, max_seconds, str(source), allow_cut=True)
    else:
        yield Media(lambda numbers: _given_frames(source, numbers))


def _given_frames(source: Any, numbers: Sequence[int] | None) -> Iterator[Frame]:
    is_picture = not isinstance(source, (list, tuple)) and getattr(source, "ndim", 0) != 4
    for number, picture in enumerate([source] if is_picture else source):
        if numbers is None or number in numbers:
            yield Frame(number, 0.0 if is_picture else None, picture_of(picture))


def picture_of(source: object) -> np.ndarray:
    """Read a path, a PIL image or an RGB array of type uint8 as an upright RGB array of shape `(height, width, 3)`.

    Raises:
        ImageError: If the picture cannot be read, or the source has another type.
    """
    if isinstance(source, (str, os.PathLike)):
        return np.asarray(open_image(Path(source)))
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] != 3):
            raise ImageError(
                "An array must be of type uint8 and shape (height, width) or (height, width, 3), "
                f"found {source.dtype} {source.shape}."
            )
        source = Image.fromarray(source)
    if not isinstance(source, Image.Image):
        raise ImageError(f"Expected a path, a PIL image or an array, found {type(source).__name__}.")
    try:
        return np.asarray(upright_rgb(source, f"<{type(source).__name__}>"))
    except OSError as error:  # the image's file is damaged
        raise ImageError(f"<{type(source).__name__}>: damaged image ({error}).") from error
