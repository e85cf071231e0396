"""Atomic replacement of folders, JSON and YAML output, file stamps."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml


def readable(path: str | os.PathLike[str]) -> str:
    """Return a file's name as valid UTF-8 text: other bytes are escaped as `\\xe9`, parts are separated by `/`."""
    text = Path(path).as_posix() if isinstance(path, Path) else os.fspath(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # an unpaired UTF-16 surrogate, which JSON may contain
        return text.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """Escape control characters, which could forge a log line or control a terminal."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in readable(text))
    return "".join(escaped)


def replace_folder(new: Path, place: Path) -> None:
    """Rename a complete folder to its final path after its files are flushed to disk."""
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
    """Write a run's configuration as a recipe."""
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")


def file_stamp(path: Path) -> str:
    """Size in bytes and modification time, to detect that a file was replaced."""
    try:
        status = path.stat()
    except OSError:  # reported later, when the file is read
        return "missing"
    return f"{status.st_size}:{status.st_mtime_ns}"


def local_stamp(path: str) -> str | None:
    """Hash names, sizes and modification times of a local file or of all files below a folder.

    Args:
        path: File, folder, or a name that is not a local path.

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
