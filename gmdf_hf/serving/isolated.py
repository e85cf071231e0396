"""Reading untrusted files in a child process with a deadline and a memory limit.

A decoder that hangs, exhausts memory or crashes ends the child, not the server. Frames are returned as raw bytes after
a line of JSON, and nothing is unpickled: a compromised child can send wrong pictures but no code.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gmdf_hf.common.images import ImageError
from gmdf_hf.preparation.media import Media, open_media
from gmdf_hf.preparation.video import Frame, ReadReport, VideoError

MAX_MEMORY = 4 * 2**30  # bytes of address space of the child
MAX_LINE = 2**20  # maximum bytes of a line of JSON
MAX_FRAME_BYTES = 3 * 50_000_000  # maximum pixels of a picture, in RGB
ERRORS: dict[str, type[ImageError] | type[VideoError]] = {"ImageError": ImageError, "VideoError": VideoError}


class IsolatedReader:
    """Reads pictures and videos in a child process, one file at a time.

    The child takes half a second to start, so it is reused for further files and replaced when it ends. It receives
    only the environment variables that Python needs: no tokens, no keys.

    Args:
        max_seconds: Maximum time for the frames of one file.
        max_memory: Address space of the child in bytes, if the operating system can limit it.
    """

    def __init__(self, max_seconds: float, max_memory: int = MAX_MEMORY) -> None:
        self.max_seconds, self.max_memory = max_seconds, max_memory
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def open(
        self,
        path: str | Path,
        count: int,
        max_seconds: float | None = None,
        name: str | None = None,
        allow_cut: bool = False,
    ) -> Media:
        """Open a file as `open_media` does; the child reads its frames, within `max_seconds` for all reads together."""
        report, seconds = ReadReport(), min(self.max_seconds, max_seconds or math.inf)
        deadline = time.monotonic() + seconds

        def read(numbers: Sequence[int] | None = None) -> Iterator[Frame]:
            request = {
                "path": str(path),
                "count": count,
                "name": name or str(path),
                "allow_cut": allow_cut,
                "seconds": seconds,
                "numbers": None if numbers is None else list(numbers),
            }
            with self._turn:
                yield from self._read(request, report, deadline)

        return Media(read, report)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            self._child = None

    def _read(self, request: dict[str, Any], report: ReadReport, deadline: float) -> Iterator[Frame]:
        child = self._running()
        assert child.stdin is not None and child.stdout is not None
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(max(deadline - time.monotonic(), 0), stop)
        timer.start()
        answer: dict[str, Any] | None = None
        try:
            with suppress(BrokenPipeError):  # the child has died; the missing answer is handled below
                child.stdin.write(json.dumps(request).encode() + b"\n")
                child.stdin.flush()
            while True:
                line = child.stdout.readline(MAX_LINE)
                found = json.loads(line) if line.endswith(b"\n") else None
                if found is None or "shape" not in found:
                    answer = found
                    break
                shape = _checked_shape(found["shape"])
                data = child.stdout.read(math.prod(shape))
                if len(data) < math.prod(shape):
                    break
                seconds = None if found["seconds"] is None else float(found["seconds"])
                yield Frame(int(found["number"]), seconds, np.frombuffer(data, np.uint8).reshape(shape))
        finally:
            timer.cancel()
            if answer is None:  # died, late, or abandoned: the rest of the pipe's data belongs to this file
                self.close()
        if answer is None:
            raise self._failure(request["name"], request["seconds"] if expired.is_set() else None)
        report.notes[:] = [str(note) for note in answer["notes"]]
        report.lost[:] = [int(number) for number in answer["lost"]]
        if "error" in answer:
            raise ERRORS.get(str(answer["error"]), ImageError)(str(answer["message"]))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LANG", "TMPDIR") if name in os.environ}
            # The child searches modules on the same paths as this process.
            environment = kept | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
            command = [sys.executable, "-m", "gmdf_hf.serving.isolated", str(self.max_memory)]
            self._child = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self._child

    def _failure(self, name: str, late: float | None) -> ImageError:
        if late is not None:
            return ImageError(f"{name}: not read within {late:g} seconds, the longest that is waited.")
        return ImageError(
            f"{name}: the decoder needed more than {self.max_memory // 2**20} MB of memory or crashed on this file."
        )


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    height, width, channels = (int(side) for side in shape)
    if channels != 3 or min(height, width) < 1 or height * width * 3 > MAX_FRAME_BYTES:
        raise ImageError(f"The reading process sent a picture of shape {shape}.")
    return height, width, channels


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main() -> None:
    """Main function of the child: serve requests, one line of JSON each, until the input ends."""
    _limit_memory(int(sys.argv[1]))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output printed by decoders must not mix with the answers
    for line in sys.stdin.buffer:
        request = json.loads(line)
        media = open_media(request["path"], request["count"], None, request["name"], request["allow_cut"])
        answer: dict[str, Any] = {}
        try:
            for frame in media.read(request["numbers"]):
                head = {"number": frame.number, "seconds": frame.seconds, "shape": frame.pixels.shape}
                answers.write(json.dumps(head).encode() + b"\n" + np.ascontiguousarray(frame.pixels).tobytes())
                answers.flush()
        except (ImageError, VideoError) as error:
            # JSON encodes a character in at most six bytes.
            answer = {"error": type(error).__name__, "message": str(error)[: MAX_LINE // 32]}
        answer |= {"notes": media.report.notes[:100], "lost": media.report.lost[:1000]}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
