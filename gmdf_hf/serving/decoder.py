"""Main function of the process that decodes untrusted files (see `isolated`)."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

import numpy as np

from gmdf_hf.common.images import ImageError
from gmdf_hf.preparation.media import open_media
from gmdf_hf.preparation.video import VideoError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MAX_LINE = 2**20  # maximum bytes of a line of JSON


def _limit(memory: int, niceness: int) -> None:
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        os.nice(niceness)


def _limit_time(seconds: float) -> None:
    """End the process after so much more processor time."""
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def main() -> None:
    """Serve requests, one line of JSON each, until the input ends."""
    _limit(int(sys.argv[1]), int(sys.argv[2]))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output printed by decoders must not mix with the answers
    answers.write(b"\n")
    answers.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_time(request["seconds"])
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
