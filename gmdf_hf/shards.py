"""Parquet files of a prepared domain: atomic parts while work goes on, shards in the end.

Every unit of work leaves one part, put in place by a rename, so a part is there as a whole or not at all. Shards are
made from the parts in the order of the units: the same bytes however often the work was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value

FEATURES = Features(
    {
        "image": Image(),
        "label": ClassLabel(names=["real", "fake"]),
        "video_id": Value("string"),
        "frame": Value("int32"),
        "method": Value("string"),
        "group": Value("string"),
    }
)
SHARD_BYTES = 500_000_000
# Small row groups let a streaming reader start early and hold little.
ROW_GROUP = 100

_SKIPPED = b"skipped"


@dataclass(frozen=True)
class Skip:
    """A file, or frames of it, that gave no rows.

    Attributes:
        file: The video, image or archive member.
        video_id: Its id; empty for files that never became a record.
        frames: Numbers of the lost frames; empty if the whole file is lost.
        reason: Why.
    """

    file: str
    video_id: str
    frames: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Part:
    """What one part holds: its file, number of rows and of videos in them, and what was skipped."""

    path: Path
    rows: int
    videos: int
    skipped: list[Skip]


def write_part(path: Path, rows: list[dict[str, object]], skipped: list[Skip]) -> None:
    """Write a part; `rows` have the columns of `FEATURES` and `hash` (a perceptual hash below 2**64)."""
    schema = FEATURES.arrow_schema.remove_metadata().append(pa.field("hash", pa.uint64()))
    notes = {
        b"videos": str(len({row["video_id"] for row in rows})),
        _SKIPPED: json.dumps([[s.file, s.video_id, s.frames, s.reason] for s in skipped]),
    }
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata(notes))
    # The process number keeps a run that was killed and one that goes on from writing to the same file.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(table, temporary, compression="none")
    temporary.replace(path)


def read_part(path: Path) -> Part:
    """Read what a part says about itself, not its rows."""
    metadata = pq.read_metadata(path)
    skipped = [
        Skip(file, video_id, tuple(frames), reason)
        for file, video_id, frames, reason in json.loads(metadata.metadata[_SKIPPED])
    ]
    return Part(path, metadata.num_rows, int(metadata.metadata[b"videos"]), skipped)


def write_shards(parts: list[Path], folder: Path, split: str, tag: str = "") -> list[str]:
    """Join the parts of one split to Parquet files of about `SHARD_BYTES` that carry the features.

    Args:
        parts: In order.
        folder: Where to write.
        split: First word of the file names.
        tag: Second word, for the work of one machine of several.

    Returns:
        Names of the files; none if the parts have no rows.
    """
    # Sizes are known beforehand, so names can say how many there are and memory holds one row group.
    groups: list[list[Path]] = []
    size = 0
    for part in parts:
        if not pq.read_metadata(part).num_rows:
            continue
        if not groups or size > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.stat().st_size
    names = [f"{split}{tag}-{index:05}-of-{len(groups):05}.parquet" for index in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        with pq.ParquetWriter(folder / name, FEATURES.arrow_schema, compression="zstd") as writer:
            for batch in _row_groups(group):
                writer.write_table(batch, row_group_size=ROW_GROUP)
    return names


def _row_groups(parts: list[Path]) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    count = 0
    for part in parts:
        table = pq.read_table(part).drop_columns("hash").cast(FEATURES.arrow_schema)
        while table.num_rows:
            piece = table.slice(0, ROW_GROUP - count)
            pending.append(piece)
            count += piece.num_rows
            table = table.slice(piece.num_rows)
            if count == ROW_GROUP:
                yield pa.concat_tables(pending)
                pending, count = [], 0
    if pending:
        yield pa.concat_tables(pending)
