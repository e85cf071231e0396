"""Writing files and putting whole folders in place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml


def readable(path: str | os.PathLike[str]) -> str:
    """A file's name as text that can be printed and written: bytes that are not UTF-8 as `\\xe9`, `/` between parts."""
    text = Path(path).as_posix() if isinstance(path, Path) else os.fspath(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a UTF-16 pair, which JSON can write
        return text.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """Text without control characters, which could forge a line or steer a terminal; they are escaped."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in readable(text))
    return "".join(escaped)


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
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_config(path: Path, fields: dict[str, Any]) -> None:
    """Write a run's configuration as a recipe that can be run again."""
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")


def file_stamp(path: Path) -> str:
    """Size in bytes and time of the last change, which tell a replaced file from the one that was read before."""
    try:
        status = path.stat()
    except OSError:  # whoever reads the file later reports it
        return "missing"
    return f"{status.st_size}:{status.st_mtime_ns}"


def local_stamp(path: str) -> str | None:
    """Hash over names, sizes and times of change of a local file or of all files below a folder.

    Args:
        path: File, folder, or the name of something that is not on this machine.

    Returns:
        16 hexadecimal digits; None if the path does not exist here.
    """
    root = Path(path)
    if not root.exists():
        return None
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if file.is_file():
            digest.update(f"{file.relative_to(root)} {file_stamp(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
