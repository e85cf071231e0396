"""Evenly spaced frames from a video file.

Frames are counted by packets, not by header fields, and a frame is valid only if all its reference frames are intact.
The result for a frame is therefore independent of the number of frames requested.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from gmdf_hf.common.images import MAX_PIXELS, why_no_file
from gmdf_hf.preparation.frame import Frame, ReadReport

try:
    import av
except ImportError:  # not needed for images
    av = None  # type: ignore[assignment]

MAX_FRAMES = 1_000_000
SUFFIXES = (
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".vob", ".flv", ".wmv", ".asf", ".3gp"),
    *(".ts", ".m2ts", ".mts", ".m2t", ".3g2", ".f4v", ".divx", ".ogv", ".mxf", ".dv", ".y4m"),
    *(".m1v", ".m2v", ".h264", ".264", ".h265", ".265", ".hevc"),
)

# Self-contained container formats. FFmpeg supports others (play lists, `concat`) that open further files and URLs,
# which is unsafe for untrusted files.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mxf,dv,yuv4mpegpipe,mpegvideo,h264,hevc"
_RAW_FORMATS = ("h264", "hevc", "mpegvideo")
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
DEFAULT_RATE = 25  # frames per second of streams without any times


class VideoError(ValueError):
    """The video cannot be read; the message names the file and the reason."""

    exit_code = 3
    hint = "Play the file, and convert it: ffmpeg -i FILE -c:v libx264 new.mp4."


@dataclass(frozen=True)
class VideoIndex:
    """Index of a video from its packets, without decoding.

    Attributes:
        times: Presentation time of every frame in the stream's time unit, ascending.
        unit: Time unit in seconds.
        missing: Description of the missing part of a truncated file; empty if it is complete.
        has_display_times: Whether packets have the time of their own frame. AVI and ASF store only decoding times,
            which differ with B-frames; raw streams store none. Frames then get their times by counting.
    """

    times: list[int]
    unit: Fraction
    missing: str = ""
    has_display_times: bool = True

    def seconds(self, number: int) -> float:
        """Time of a frame since the first one."""
        return float((self.times[number] - self.times[0]) * self.unit)


def even_indices(total: int, count: int) -> list[int]:
    """Return at most `count` distinct frame numbers, evenly spaced from the first to the last of `total` frames."""
    return sorted({int(index) for index in np.linspace(0, total - 1, min(count, total)).round()})


def index_video(path: str | Path) -> VideoIndex:
    """List the frames of a video without decoding any.

    Raises:
        VideoError: If the file is no video, or has no frames or more than `MAX_FRAMES`.
    """
    times: set[int] = set()
    packets = damaged = 0
    with _open(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                packets += 1
                damaged += packet.is_corrupt
                if packets > MAX_FRAMES:
                    raise VideoError(f"{path}: more than {MAX_FRAMES} frames, the most that is read.")
                # Frames removed by the container's edit list are never displayed; the second field of a frame has no
                # time.
                if not packet.is_discard and not packet.is_corrupt and (when := _time(packet)) is not None:
                    times.add(when)
        except av.FFmpegError:
            damaged += 1
        expected = stream.frames
        if container.format.name == "avi" and packets < expected and _is_whole_riff(path):
            expected = packets  # repeated frames are in the index but have no packet
        elif container.format.name == "mpegts":
            damaged = 0  # a gap in a transport stream is damage, not truncation
        unit = stream.time_base or Fraction(1, DEFAULT_RATE)
        if not times and container.format.name in _RAW_FORMATS:
            times, unit = set(range(packets)), 1 / (stream.guessed_rate or Fraction(DEFAULT_RATE))
        has_b_frames = stream.codec_context.has_b_frames
        has_display_times = not (has_b_frames and container.format.name in ("avi", "asf", *_RAW_FORMATS))
    if not times:
        raise VideoError(f"{path}: expected frames with a time, found {packets} packets without.")
    missing = ""
    if damaged or packets < expected:
        missing = f"cut short, {packets - damaged} whole frames found of {max(packets, expected)}"
    return VideoIndex(sorted(times), unit, missing, has_display_times)


def frame_times(path: str | Path) -> list[int]:
    """Return the presentation time of every frame of a complete video, in the stream's time unit.

    Their number is the exact frame count; header values are often wrong.

    Raises:
        VideoError: As `index_video`, and if the file is truncated.
    """
    index = index_video(path)
    if index.missing:
        raise VideoError(f"{path}: {index.missing}.")
    return index.times


def read_frames(
    path: str | Path,
    count: int,
    max_seconds: float | None = None,
    numbers: Sequence[int] | None = None,
    report: ReadReport | None = None,
    allow_cut: bool = False,
) -> Iterator[Frame]:
    """Decode `count` evenly spaced frames of the whole video, with one frame in memory.

    A frame that cannot be decoded, or has a damaged reference frame, is replaced by the next intact one.

    Args:
        path: Video file.
        count: Number of frames; a shorter video gives all its frames.
        max_seconds: Maximum total time, including the consumer's time between frames; None for no limit.
        numbers: Frames to decode instead of evenly spaced ones.
        report: Object to which errors and warnings are added.
        allow_cut: Read a truncated file up to its end, instead of rejecting it.

    Yields:
        Frames in order of time.

    Raises:
        VideoError: If the file cannot be opened, is truncated, has no intact frame, has frames of more than
            `MAX_PIXELS`, or takes too long.
    """
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    index = index_video(path)
    report = report or ReadReport()
    if index.missing:
        if not allow_cut:
            raise VideoError(f"{path}: {index.missing}.")
        report.notes.append(f"The file is {index.missing}; what is there was read.")
    place = {when: number for number, when in enumerate(index.times)}
    chosen = even_indices(len(place), count) if numbers is None else sorted({n for n in numbers if n < len(place)})
    wanted = [index.times[number] for number in chosen]
    exact, taken, found, damage = set(wanted), 0, 0, 0
    broken_since: int | None = None  # time of the last damage; later frames are invalid until an intact key frame
    counted = None if index.has_display_times else iter(index.times)  # frames leave the decoder in the order of display
    with _open(path) as (container, stream):
        for packet in _packets(container, stream):
            # Non-reference frames are decoded only if requested, which saves about a third of the time.
            is_wanted = counted is not None or not packet.size or _time(packet) in exact
            stream.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            if time.monotonic() > deadline:
                raise VideoError(f"{path}: not read within {max_seconds:g} seconds, {len(place)} frames.")
            try:
                frames = packet.decode()
            except av.FFmpegError:
                frames, broken_since, damage = [], _time(packet) or 0, damage + 1
            for frame in frames:
                when = _time(frame) if counted is None else next(counted, None)
                if when is None:
                    continue
                if frame.is_corrupt:
                    broken_since, damage = when, damage + 1
                    continue
                if broken_since is not None and when > broken_since:
                    if not frame.key_frame:
                        continue
                    broken_since = None
                if taken < len(wanted) and when >= wanted[taken]:
                    while taken < len(wanted) and when >= wanted[taken]:
                        report.lost += [chosen[taken]] if when > wanted[taken] else []
                        taken += 1
                    if when in place:
                        found += 1
                        number = place[when]
                        yield Frame(number, index.seconds(number), _upright(frame, stream, path))
                exact.discard(when)
            if taken == len(wanted):
                break
    if not found:
        raise VideoError(
            f"{path}: no intact frame. Of {len(place)} frames, none starts from an undamaged key frame: the recording "
            "was joined in the middle, or is damaged."
        )
    report.lost += chosen[taken:]
    if damage and not index.missing:
        report.notes.append(
            f"The video is damaged: {len(report.lost)} of {len(wanted)} frames could not be read; where one follows, "
            "the next intact one was taken."
        )


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Yield packets up to the first read error; truncation is already reported by the index."""
    try:
        for packet in container.demux(stream):
            if packet.size or packet.dts is None:  # Ogg has empty packets for repeated frames; decoders stop at them
                yield packet
    except av.FFmpegError:
        return


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    if problem := why_no_file(path):
        raise VideoError(f"{path}: {problem}.")
    if not os.path.getsize(path):
        raise VideoError(f"{path}: an empty file, expected a video.")
    if av is None:
        raise VideoError(f"{path}: reading videos needs the package PyAV (`pip install av`).")
    try:
        # An absolute path: FFmpeg would take `concat:a|b` for a protocol. Undecodable metadata such as titles is not an
        # error.
        name, form = str(Path(path).absolute()), _format_of(path)
        with av.open(name, format=form, options=_OPTIONS, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream) or stream.codec_context is None:  # unknown codec
                raise VideoError(f"{path}: no video stream that can be decoded.")
            if stream.codec_context.width:  # a stream that starts in the middle has its size only later
                _check_size(stream.codec_context.width, stream.codec_context.height, path)
            # Parallelism is over processes; a single thread also makes `skip_frame` exact.
            stream.thread_type = "NONE"
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: not a readable video ({error.strerror}).") from error


def _format_of(path: str | Path) -> str | None:
    """FFmpeg's name of a format that it would recognise by the suffix only, if the file is short."""
    with open(path, "rb") as file:
        return {b"\0\0\1\xba": "mpeg", b"\0\0\1\xb3": "mpegvideo"}.get(file.read(4))


def _time(item: av.Packet | av.VideoFrame) -> int | None:
    return item.pts if item.pts is not None else item.dts  # AVI has only decoding times


def _is_whole_riff(path: str | Path) -> bool:
    """Whether an AVI file is as long as its header says."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8)[4:], "little")
    return 8 + size <= Path(path).stat().st_size


def _check_size(width: int, height: int, path: str | Path) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise VideoError(f"{path}: frames of {width}x{height} pixels, expected between 1 and {MAX_PIXELS} in all.")


def _upright(frame: av.VideoFrame, stream: av.VideoStream, path: str | Path) -> np.ndarray:
    from gmdf_hf.preparation.colors import shown_width, to_rgb

    _check_size(shown_width(frame, stream.sample_aspect_ratio), frame.height, path)  # may change within the stream
    pixels = to_rgb(frame, stream.sample_aspect_ratio, stream.codec_context.color_trc)
    turns = round(frame.rotation / 90) % 4  # counter-clockwise quarters
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
