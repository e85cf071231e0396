"""Expansion of command-line arguments to files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

SLOW_SECONDS = 10.0  # after which the user is told which file is being read


def list_files(sources: Iterable[str]) -> Iterator[str]:
    """Yield URLs and files unchanged, and the files of folders in order, without hidden files.

    Symbolic links to folders are followed; a folder that is reached twice, or contains itself, is listed once. A folder
    that cannot be listed is yielded itself, so that its error is reported.
    """
    seen: set[tuple[int, int]] = set()
    for source in sources:
        if not os.path.isdir(source):
            yield source
            continue
        unreadable: list[OSError] = []
        for folder, folders, names in os.walk(source, onerror=unreadable.append, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (os.path.join(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (str(error.filename) for error in unreadable)


@contextmanager
def announcing(name: str, say: Callable[[str], object] | None, seconds: float = SLOW_SECONDS) -> Iterator[None]:
    """Say once which file is being read, if the block takes longer than some seconds.

    Args:
        name: The file.
        say: Function that is called with its name, in another thread; None to say nothing.
        seconds: Time before it is called.
    """
    if say is None:
        yield
        return
    timer = threading.Timer(seconds, say, [name])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
