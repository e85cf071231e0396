"""Writing files and putting whole folders in place."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml


def readable(path: str | os.PathLike[str]) -> str:
    """A file's name as text that can be printed and written: bytes that are not UTF-8 as `\\xe9`, `/` between parts."""
    text = Path(path).as_posix() if isinstance(path, Path) else os.fspath(path)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def replace_folder(new: Path, place: Path) -> None:
    """Rename a complete folder to its place, its files being on the disk before it is seen there."""
    for path in [*new.rglob("*"), new]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    descriptor = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_config(path: Path, fields: dict[str, Any]) -> None:
    """Write a run's configuration as a recipe that can be run again."""
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
