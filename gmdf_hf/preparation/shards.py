"""Parquet files of a prepared domain, joined from the parts in the order of the units, with reproducible bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gmdf_hf.common.columns import prepared_features

SHARD_BYTES = 500_000_000
# Small row groups let a streaming reader start early and use little memory.
ROW_GROUP = 100


def write_shards(parts: list[Path], folder: Path, split: str, tag: str = "", masks: bool = False) -> list[str]:
    """Join the parts of one split to Parquet files of about `SHARD_BYTES` with the features as metadata.

    Args:
        parts: Parts in order.
        folder: Output folder.
        split: First word of the file names.
        tag: Second word, if several machines share the work.
        masks: Whether to write a column `mask`.

    Returns:
        Names of the files; none if the parts have no rows.
    """
    # Sizes are known in advance, so file names include the number of files and memory holds one row group.
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
    schema = prepared_features(masks).arrow_schema
    for name, group in zip(names, groups, strict=True):
        with pq.ParquetWriter(folder / name, schema, compression="zstd") as writer:
            for batch in _row_groups(group, schema):
                writer.write_table(batch, row_group_size=ROW_GROUP)
    return names


def _row_groups(parts: list[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    count = 0
    for part in parts:
        table = pq.read_table(part).select(schema.names).cast(schema)
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
