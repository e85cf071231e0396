"""Digest of the data of a domain, so that others can verify a copy of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of names, sizes and footers of Parquet files.

    The footer has the compressed size of every column chunk; reading it takes no time even for a large domain.
    """
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} {file.stat().st_size} {pq.read_metadata(file).to_dict()}".encode())
    return digest.hexdigest()


def manifest_digest(path: str | Path) -> str | None:
    """Return the SHA-256 that identifies a local domain: its Parquet files, or names and sizes of its other files.

    Args:
        path: Folder or file; anything else, such as a hub id, has no manifest here.

    Returns:
        64 hexadecimal digits, or None if there is no such file or folder, or it is empty.
    """
    root = Path(path)
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    parquet = [file for file in files if file.suffix == ".parquet"]
    if parquet:
        try:
            return parquet_digest(parquet)
        except pa.ArrowInvalid:
            return None
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()} {file.stat().st_size}\n".encode())
    return digest.hexdigest()
