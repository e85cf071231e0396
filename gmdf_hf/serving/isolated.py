"""Reading untrusted files in child processes with a deadline and a memory limit.

A decoder that hangs, exhausts memory or crashes ends the child, not the server. Frames are returned as raw bytes after
a line of JSON, and nothing is unpickled: a compromised child can send wrong pictures but no code.

A file is read completely, to a temporary file, before its faces are detected, so that a server can wait for a slow
decoder without its detector. Files that are not read within a few seconds start again in a second lane with a process
of low priority: slow files wait for each other, and all others overtake them.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from gmdf_hf.common.images import ImageError
from gmdf_hf.common.memory import trim_memory
from gmdf_hf.preparation.media import Media
from gmdf_hf.preparation.video import Frame, ReadReport, VideoError
from gmdf_hf.serving.decoder import MAX_LINE

MAX_MEMORY = 4 * 2**30  # bytes of address space of a child
MAX_FRAME_BYTES = 3 * 50_000_000  # maximum pixels of a picture, in RGB
MAX_FILE_BYTES = 2 * 2**30  # maximum pixels of all frames of a file
QUICK_SECONDS, QUICK_CHILDREN = 3.0, 4
WALL_FACTOR = 3.0  # maximum waiting time relative to the processor time that a file may take, on a busy machine
START_SECONDS = 60.0  # maximum time for the start of a child
FILES_OF_A_CHILD = 50  # a decoder's memory is given back when the child ends
LOW_PRIORITY = 5  # niceness
ERRORS: dict[str, type[ImageError] | type[VideoError]] = {"ImageError": ImageError, "VideoError": VideoError}


class IsolatedReader:
    """Reads pictures and videos in child processes, four quick files and one slow file at a time.

    A child takes half a second to start, so it is reused for further files and replaced when it ends. It receives only
    the environment variables that Python needs: no tokens, no keys.

    Args:
        max_seconds: Maximum processor time for the frames of one file; the waiting time is limited to three times that.
        max_memory: Address space of a child in bytes, if the operating system can limit it.
        quick_seconds: Processor time after which a file is read in the slow lane.
    """

    def __init__(self, max_seconds: float, max_memory: int = MAX_MEMORY, quick_seconds: float = QUICK_SECONDS) -> None:
        self.max_seconds, self.quick_seconds = max_seconds, min(quick_seconds, max_seconds)
        self._children = [_Child(max_memory) for _ in range(QUICK_CHILDREN)] + [_Child(max_memory, LOW_PRIORITY)]
        self._quick: queue.LifoQueue[_Child] = queue.LifoQueue()
        self._slow: queue.LifoQueue[_Child] = queue.LifoQueue()
        for child in self._children:
            (self._slow if child.niceness else self._quick).put(child)
        self._ahead = threading.local()  # `path` and `stored` of the file that this thread has read

    @contextmanager
    def ahead(self, path: str | Path, count: int) -> Iterator[None]:
        """Read the frames of a file now; `open` uses them inside the block. Errors are raised by `Media.read`."""
        request = {"path": str(path), "count": count, "name": str(path), "allow_cut": True, "numbers": None}
        with self._stored(request, self.max_seconds) as stored:
            self._ahead.path, self._ahead.stored = str(path), stored
            try:
                yield
            finally:
                self._ahead.path = self._ahead.stored = None
                trim_memory()

    def open(
        self,
        path: str | Path,
        count: int,
        max_seconds: float | None = None,
        name: str | None = None,
        allow_cut: bool = False,
    ) -> Media:
        """Open a file as `open_media` does; a child reads its frames, within `max_seconds`."""
        report, seconds = ReadReport(), min(self.max_seconds, max_seconds or math.inf)
        request = {"path": str(path), "count": count, "name": name or str(path), "allow_cut": allow_cut}

        def read(numbers: Sequence[int] | None = None) -> Iterator[Frame]:
            ahead = self._ahead.stored if getattr(self._ahead, "path", None) == str(path) else None
            if ahead is not None and ahead.has(numbers):
                yield from ahead.read(numbers, report)
                return
            wanted = {"numbers": None if numbers is None else [int(number) for number in numbers]}
            # Further frames of a file that was read ahead: the detector is waiting.
            limit = seconds if ahead is None else min(seconds, self.quick_seconds)
            with self._stored(request | wanted, limit) as stored:
                yield from stored.read(None, report)

        return Media(read, report)

    def close(self) -> None:
        """End the children."""
        for child in self._children:
            child.close()

    @contextmanager
    def _stored(self, request: dict[str, Any], seconds: float) -> Iterator[_Stored]:
        """Read a file in the quick lane, then in the slow lane; the lane's place is held until the block ends."""
        lanes = [(self._quick, min(seconds, self.quick_seconds))]
        lanes += [(self._slow, seconds)] if seconds > self.quick_seconds else []
        for lane, limit in lanes:
            child = lane.get()
            try:
                with _Stored() as stored:
                    stored.fill(child, request, limit)
                    if not stored.is_late or limit == seconds:
                        yield stored
                        return
            finally:
                lane.put(child)


class _Stored:
    """Frames of a file in a temporary file, or the error that reading raised."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `__exit__`
        self._frames: dict[int, tuple[float | None, tuple[int, int, int], int]] = {}
        self._report = ReadReport()
        self._error: Exception | None = None
        self.is_late = False

    def __enter__(self) -> _Stored:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def fill(self, child: _Child, request: dict[str, Any], seconds: float) -> None:
        """Store all frames that a child reads."""
        try:
            size = 0
            with closing(child.read(request, self._report, seconds)) as frames:
                for frame in frames:
                    self._frames[frame.number] = (frame.seconds, frame.pixels.shape, size)
                    size += frame.pixels.nbytes
                    if size > MAX_FILE_BYTES:
                        raise ImageError(
                            f"{request['name']}: frames of {frame.pixels.shape[1]}x{frame.pixels.shape[0]} pixels, "
                            f"expected at most {MAX_FILE_BYTES // 2**20} MB for all frames."
                        )
                    self._file.write(frame.pixels.data)
            self._file.flush()
        except (ImageError, VideoError) as error:
            self._error, self.is_late = error, isinstance(error, _LateError)

    def has(self, numbers: Sequence[int] | None) -> bool:
        """Whether all frames with these numbers are stored, or none can be."""
        return numbers is None or self._error is not None or self._frames.keys() >= set(numbers)

    def read(self, numbers: Sequence[int] | None, report: ReadReport) -> Iterator[Frame]:
        """Yield the stored frames with these numbers, all for None, and fill the report.

        Raises:
            ImageError: If the file could not be read.
            VideoError: As above, of a video.
        """
        report.notes[:], report.lost[:] = self._report.notes, self._report.lost
        if self._error is not None:
            raise self._error
        for number, (seconds, shape, place) in self._frames.items():
            if numbers is None or number in numbers:
                self._file.seek(place)
                pixels = np.fromfile(self._file, np.uint8, math.prod(shape))
                yield Frame(number, seconds, pixels.reshape(shape))


class _LateError(ImageError):
    """The file was not read within the time limit."""


class _Child:
    """A reading process, started for its first file.

    Args:
        max_memory: Its address space in bytes.
        niceness: Its priority; larger values are lower priorities.
    """

    def __init__(self, max_memory: int, niceness: int = 0) -> None:
        self.max_memory, self.niceness = max_memory, niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._files = 0

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            self._process = None

    def read(self, request: dict[str, Any], report: ReadReport, seconds: float) -> Generator[Frame, None, None]:
        """Yield the frames of a file.

        Raises:
            ImageError: If the file cannot be read, or not within `seconds`.
            VideoError: If it is a video that cannot be read.
        """
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(WALL_FACTOR * seconds, stop)
        timer.start()
        answer: dict[str, Any] | None = None
        late = False
        try:
            with suppress(BrokenPipeError):  # the process has died; the missing answer is handled below
                process.stdin.write(json.dumps(request | {"seconds": seconds}).encode() + b"\n")
                process.stdin.flush()
            while True:
                line = process.stdout.readline(MAX_LINE)
                found = json.loads(line) if line.endswith(b"\n") else None
                if found is None or "shape" not in found:
                    answer = found
                    break
                shape = _checked_shape(found["shape"])
                data = process.stdout.read(math.prod(shape))
                if len(data) < math.prod(shape):
                    break
                moment = None if found["seconds"] is None else float(found["seconds"])
                yield Frame(int(found["number"]), moment, np.frombuffer(data, np.uint8).reshape(shape))
        finally:
            timer.cancel()
            late = answer is None and (expired.is_set() or self._exceeded_its_time(process))
            self._files += 1
            if answer is None or self._files >= FILES_OF_A_CHILD:
                self.close()  # died, late, abandoned with data in the pipe, or old
        if answer is None:
            raise self._failure(request["name"], seconds if late else None)
        report.notes[:] = [str(note) for note in answer["notes"]]
        report.lost[:] = [int(number) for number in answer["lost"]]
        if "error" in answer:
            raise ERRORS.get(str(answer["error"]), ImageError)(str(answer["message"]))

    def _started(self) -> subprocess.Popen[bytes]:
        """The running process; its start does not count as reading time."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LANG", "TMPDIR") if name in os.environ}
            # The process searches modules on the same paths as this process.
            environment = kept | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
            command = [sys.executable, "-m", "gmdf_hf.serving.decoder", str(self.max_memory), str(self.niceness)]
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._files = 0
            timer = threading.Timer(START_SECONDS, self._process.kill)
            timer.start()
            assert self._process.stdout is not None
            self._process.stdout.readline(MAX_LINE)  # an empty line when it is ready
            timer.cancel()
        return self._process

    @staticmethod
    def _exceeded_its_time(process: subprocess.Popen[bytes]) -> bool:
        """Whether the operating system has ended a process at its limit of processor time."""
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=1) == -getattr(signal, "SIGXCPU", 0)
        return False

    def _failure(self, name: str, late: float | None) -> ImageError:
        if late is not None:
            return _LateError(f"{name}: not read within {late:g} seconds, the longest that is waited.")
        limit = self.max_memory // 2**20
        return ImageError(f"{name}: the decoder needed more than {limit} MB of memory or crashed on this file.")


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    height, width, channels = (int(side) for side in shape)
    if channels != 3 or min(height, width) < 1 or height * width * 3 > MAX_FRAME_BYTES:
        raise ImageError(f"The reading process sent a picture of shape {shape}, expected (height, width, 3).")
    return height, width, channels
