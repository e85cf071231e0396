"""Evenly spaced frames out of a video file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gmdf_hf.modeling.images_gmdf import MAX_PIXELS

try:
    import av
except ImportError:  # images can be read without it
    av = None  # type: ignore[assignment]

MAX_FRAMES = 1_000_000
SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts")

# Containers that hold their own frames. FFmpeg knows others (play lists, `concat`) that name further files and
# addresses to open, which a file from a stranger must not make us do.
_OPTIONS = {"format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,asf", "protocol_whitelist": "file"}


class VideoError(ValueError):
    """A video that cannot be read; the message names the file and the reason."""

    exit_code = 3
    hint = "Play the file, and convert it: ffmpeg -i FILE -c:v libx264 new.mp4."


def even_indices(total: int, count: int) -> list[int]:
    """Return at most `count` different frame numbers spread evenly from the first to the last of `total` frames."""
    return sorted({int(index) for index in np.linspace(0, total - 1, min(count, total)).round()})


def frame_times(path: str | Path) -> list[int]:
    """Return the presentation time of every frame, in order, without decoding any.

    Args:
        path: Video file.

    Returns:
        Ascending times in the stream's own unit, one per frame: their number is the exact frame count, which headers
        often get wrong.

    Raises:
        VideoError: If the file is no video, has no frames or more than `MAX_FRAMES`, or is cut short.
    """
    times: set[int] = set()
    packets = damaged = untimed = 0
    with _open(path) as (container, stream):
        for packet in container.demux(stream):
            if not packet.size:
                continue
            packets += 1
            damaged += packet.is_corrupt
            if packets > MAX_FRAMES:
                raise VideoError(f"{path}: more than {MAX_FRAMES} frames, the most that is read.")
            if not packet.is_discard:  # cut away by the container's edit list: never shown
                time_of_frame = _time(packet)
                if time_of_frame is None:
                    untimed += 1
                else:
                    times.add(time_of_frame)
        expected = max(packets, stream.frames)
    if damaged or packets < expected:
        raise VideoError(f"{path}: cut short, {packets - damaged} whole frames found of {expected}.")
    if untimed or not times:
        raise VideoError(f"{path}: no frames with a time, found {packets} packets.")
    return sorted(times)


def read_frames(path: str | Path, count: int, max_seconds: float | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Decode `count` frames spread evenly over the whole video, holding one at a time.

    Args:
        path: Video file.
        count: Number of frames; a shorter video gives all it has.
        max_seconds: Longest time to take, that of whoever takes the frames included; None for any.

    Yields:
        Frame number and upright RGB picture of shape `(height, width, 3)`, in order of time.

    Raises:
        VideoError: If the file cannot be opened or decoded, if a frame is larger than `MAX_PIXELS`, or if a wanted
            frame does not come out of the decoder, or if it takes too long.
    """
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    times = frame_times(path)
    indices = even_indices(len(times), count)
    wanted = {times[index]: index for index in indices}
    with _open(path) as (container, stream):
        context = stream.codec_context
        for packet in container.demux(stream):
            # A frame that no other refers to is decoded only if it is wanted: about a third of the time is saved.
            context.skip_frame = "DEFAULT" if not packet.size or _time(packet) in wanted else "NONREF"
            if time.monotonic() > deadline:
                raise VideoError(f"{path}: not read within {max_seconds:g} seconds, {len(times)} frames.")
            for frame in packet.decode():
                shown = frame.pts if frame.pts is not None else frame.dts
                index = None if shown is None else wanted.pop(shown, None)
                if index is not None:
                    yield index, _upright(frame, path)
            if not wanted:
                return
    raise VideoError(f"{path}: damaged, {len(indices) - len(wanted)} of {len(indices)} wanted frames could be decoded.")


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    if not Path(path).is_file():
        raise VideoError(f"{path}: no such file.")
    if av is None:
        raise VideoError(f"{path}: reading videos needs the package PyAV (`pip install av`).")
    try:
        # An absolute path: FFmpeg would take `concat:a|b` for a protocol.
        # Titles in some old encoding are no reason to refuse a video.
        with av.open(str(Path(path).absolute()), options=_OPTIONS, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream) or stream.codec_context is None:  # of an unknown codec
                raise VideoError(f"{path}: no video stream that can be decoded.")
            _check_size(stream.codec_context.width, stream.codec_context.height, path)
            # Work is spread over processes; one thread also makes `skip_frame` exact.
            stream.thread_type = "NONE"
            yield container, stream
    except av.FFmpegError as error:
        raise VideoError(f"{path}: not a readable video ({error.strerror}).") from error


def _time(packet: av.Packet) -> int | None:
    return packet.pts if packet.pts is not None else packet.dts  # AVI has decoding times only


def _check_size(width: int, height: int, path: str | Path) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise VideoError(f"{path}: frames of {width}x{height} pixels, expected between 1 and {MAX_PIXELS} in all.")


def _upright(frame: av.VideoFrame, path: str | Path) -> np.ndarray:
    _check_size(frame.width, frame.height, path)  # a stream may change its size on the way
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counter-clockwise quarters
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
