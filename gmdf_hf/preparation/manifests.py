"""Digest of a domain's data, for the verification of copies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of names, sizes and footers of Parquet files.

    The footer contains the compressed size of every column chunk, and reading it is fast even for a large domain.
    """
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} {file.stat().st_size} {pq.read_metadata(file).to_dict()}".encode())
    return digest.hexdigest()


def manifest_digest(path: str | Path) -> str | None:
    """Return the SHA-256 that identifies a local domain: its Parquet files, or names and sizes of its other files.

    Args:
        path: Folder or file; other names, such as hub ids, have no digest.

    Returns:
        64 hexadecimal digits, or None if the path does not exist or is empty.
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
