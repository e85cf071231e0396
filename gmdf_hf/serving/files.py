"""Expansion of command-line arguments to files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from gmdf_hf.common.errors import UserError
from gmdf_hf.serving.inputs import is_url

SLOW_SECONDS = 10.0  # after which the user is told which file is being read


def list_files(sources: Iterable[str]) -> Iterator[str]:
    """Yield URLs and files unchanged, the files of folders in order, without hidden files, and the files of lists.

    Symbolic links to folders are followed; a folder that is reached twice, or contains itself, is listed once. A folder
    that cannot be listed is yielded itself, so that its error is reported. A list is a Parquet file with the column
    `path`, whose relative paths start at the list's own folder.

    Raises:
        UserError: If a list cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    for source in sources:
        if source.endswith(".parquet") and os.path.isfile(source):
            yield from _listed(source)
            continue
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


def _listed(source: str) -> Iterator[str]:
    try:
        with pq.ParquetFile(source) as table:
            for batch in table.iter_batches(columns=["path"]):
                for path in batch.column("path").to_pylist():
                    if not isinstance(path, str) or not path:
                        raise ValueError(f"a row of `path` is {path!r}, expected a path or an address")
                    yield path if is_url(path) else os.path.join(os.path.dirname(source), path)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"The list {source} cannot be read: {' '.join(str(error).split())}.",
            "Expected a Parquet file whose column `path` holds paths or addresses.",
        ) from error


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
