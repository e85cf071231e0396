"""Output of workers: one Parquet file per unit of work, written atomically by a rename."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gmdf_hf.common.resume import write_unit

# The columns of a prepared domain (see `common.columns`) and a perceptual hash of each crop.
SCHEMA = pa.schema(
    {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
        "video_id": pa.string(),
        "frame": pa.int32(),
        "method": pa.string(),
        "group": pa.string(),
        "seconds": pa.float32(),
        "mask": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "hash": pa.uint64(),
    }
)

_SKIPPED, _DOUBTFUL, _TURNED = b"skipped", b"doubtful", b"turned"


@dataclass(frozen=True)
class Skip:
    """A file, or some of its frames, without rows.

    Attributes:
        file: The video, image or archive member.
        video_id: Id of the video; empty for files without a record.
        frames: Numbers of the lost frames; empty if the whole file is lost.
        reason: Reason for skipping.
    """

    file: str
    video_id: str
    frames: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Part:
    """Summary of one part.

    Attributes:
        path: Path of its file.
        rows: Number of rows.
        videos: Number of videos in them.
        skipped: Files and frames without rows.
        doubtful: Fake videos of several people without a mask: the forged face is unknown.
        turned: Videos and images whose faces were found after a turn, with its degrees.
    """

    path: Path
    rows: int
    videos: int
    skipped: list[Skip]
    doubtful: list[str]
    turned: list[str]


def write_part(
    path: Path, rows: list[dict[str, object]], skipped: list[Skip], doubtful: list[str], turned: list[str]
) -> None:
    """Write a part; `rows` have the columns of `SCHEMA`."""
    notes = {
        b"videos": str(len({row["video_id"] for row in rows})),
        _SKIPPED: json.dumps([[s.file, s.video_id, s.frames, s.reason] for s in skipped]),
        _DOUBTFUL: json.dumps(doubtful),
        _TURNED: json.dumps(turned),
    }
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(notes))
    write_unit(path, table)


def read_part(path: Path) -> Part:
    """Read the summary of a part without its rows."""
    metadata = pq.read_metadata(path)
    skipped = [
        Skip(file, video_id, tuple(frames), reason)
        for file, video_id, frames, reason in json.loads(metadata.metadata[_SKIPPED])
    ]
    doubtful, turned = (json.loads(metadata.metadata[key]) for key in (_DOUBTFUL, _TURNED))
    return Part(path, metadata.num_rows, int(metadata.metadata[b"videos"]), skipped, doubtful, turned)
