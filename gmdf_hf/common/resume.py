"""Resumable work: units with atomically written files, in a folder that stores the settings.

Preparing a domain, scoring domains and predicting files resume in the same way: the settings are written first and
compared on resumption, each unit of work writes one Parquet file, and files are written atomically by a rename.
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

from gmdf_hf.common.errors import WorkError


@dataclass(frozen=True)
class Difference:
    """A setting that differs between the start of the work and its resumption."""

    name: str
    found: Any
    expected: Any


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: write to a temporary name, then rename.

    Args:
        path: Path of the file; an existing file is replaced.
        write: Function that writes the content to a given path.
    """
    # The process id prevents a killed run and its successor from writing to the same temporary file.
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write(new)
    new.replace(path)


def write_whole_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, independent of the locale (see `write_whole`)."""
    write_whole(path, lambda new: new.write_text(text, encoding="utf-8"))


def differences(found: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Difference]:
    """Settings that differ; a missing setting counts as None."""
    expected = json.loads(json.dumps(settings))
    return [Difference(name, found.get(name), value) for name, value in expected.items() if found.get(name) != value]


def begin(path: Path, settings: Mapping[str, Any], unknown: Iterable[str] = ()) -> list[Difference]:
    """Write the settings of a result, or compare them with the file.

    Args:
        path: JSON file of the settings.
        settings: All settings that the result depends on, as a JSON value.
        unknown: Settings that earlier versions did not write; if missing, they are not compared.

    Returns:
        The differences; the work can resume if there are none.

    Raises:
        WorkError: If the file exists and cannot be read.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole_text(path, json.dumps(settings, indent=2) + "\n")
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"found {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise WorkError(
            f"{path} must hold the settings of the results beside it, a JSON mapping, and cannot be read ({error}).",
            "Choose another output, or delete the old one to begin anew.",
        ) from error
    return differences({name: settings.get(name) for name in unknown} | found, settings)


def unit_file(folder: Path, first: int, last: int | None = None) -> Path:
    """File of one unit of work or of consecutive units; file names sort in the order of the units."""
    return folder / (f"{first:08}.parquet" if last is None else f"{first:08}-{last:08}.parquet")


def write_unit(path: Path, table: pa.Table) -> None:
    """Write the result of a unit, uncompressed, as it is read once and then deleted."""
    write_whole(path, lambda new: pq.write_table(table, new, compression="none"))


def unit_files(folder: Path) -> list[Path]:
    """Files of all finished units, in order."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
