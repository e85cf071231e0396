"""Expansion of command-line arguments to files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator


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
