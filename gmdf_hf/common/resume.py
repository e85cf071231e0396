"""Resumable work: units that are written whole, in a folder that belongs to one piece of work.

Preparing a domain, scoring domains and predicting files all go on after a stop in the same way: what the result depends
on is written down first and compared by whoever continues, a unit of work leaves one Parquet file, and a file is put
in place by a rename, so it is there as a whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Difference:
    """A setting with which the work was begun, and that of the call that wants to continue it."""

    name: str
    found: Any
    expected: Any


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name and rename it.

    Args:
        path: Where the file goes; an older one is replaced.
        write: Writes the content to the path that it is given.
    """
    # The process number keeps a run that was killed and one that goes on from writing to the same file.
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write(new)
    new.replace(path)


def write_whole_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whatever the locale (see `write_whole`)."""
    write_whole(path, lambda new: new.write_text(text, encoding="utf-8"))


def differences(found: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Difference]:
    """Settings that differ; one that was not written down counts as None."""
    expected = json.loads(json.dumps(settings))
    return [Difference(name, found.get(name), value) for name, value in expected.items() if found.get(name) != value]


def begin(path: Path, settings: Mapping[str, Any], unknown: Iterable[str] = ()) -> list[Difference]:
    """Write down what a result depends on, or compare it with what was written.

    Args:
        path: JSON file of the settings.
        settings: JSON value of everything the result depends on.
        unknown: Settings that earlier versions did not write down and that are then not compared.

    Returns:
        What differs; the work can go on if nothing does.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole_text(path, json.dumps(settings, indent=2) + "\n")
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return differences({name: settings.get(name) for name in unknown} | found, settings)


def unit_file(folder: Path, first: int, last: int | None = None) -> Path:
    """File of a unit of work, or of several in a row; the files sort in the order of the units."""
    return folder / (f"{first:08}.parquet" if last is None else f"{first:08}-{last:08}.parquet")


def write_unit(path: Path, table: pa.Table) -> None:
    """Write the result of a unit; uncompressed, as it is read once more and then deleted."""
    write_whole(path, lambda new: pq.write_table(table, new, compression="none"))


def unit_files(folder: Path) -> list[Path]:
    """Files of all units that are done, in their order."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
