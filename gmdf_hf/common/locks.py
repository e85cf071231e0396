"""One run at a time in an output folder."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gmdf_hf.common.errors import UserError


@contextmanager
def locked_folder(folder: Path, part: str = "") -> Iterator[None]:
    """Lock an output folder for the duration of a run; create the folder if it does not exist.

    The operating system releases the lock when the process ends, however it ends: a killed run leaves no lock behind.

    Args:
        folder: Output folder of the run.
        part: Part of the folder to lock, if several runs may write different parts.

    Raises:
        UserError: If another process holds the lock; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner, file = folder / f".running{part}.json", folder / f".running{part}.lock"
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{folder} is in use by {_describe(owner)}. Wait for it, stop it, or choose another output folder."
        ) from error
    try:
        owner.write_text(
            json.dumps(
                {
                    "process": os.getpid(),
                    "host": socket.gethostname(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                    "command": " ".join(sys.argv),
                }
            )
        )
        yield
    finally:
        # Before the release: afterwards the files may belong to the next run.
        owner.unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        lock.release()


def _describe(owner: Path) -> str:
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
        return f"process {found['process']} on {found['host']} since {found['since']} ({found['command']})"
    except (OSError, ValueError, KeyError):  # the other process has just started or ended
        return "another process"
