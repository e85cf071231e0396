"""Contact sheet: one overview picture of a prepared domain."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from gmdf_hf.preparation.video import even_indices

COLORS = {0: (40, 160, 60), 1: (200, 50, 50)}
CELL, MARGIN, TEXT = 96, 3, 14


def contact_sheet(domain: str | Path, videos: int = 24, frames: int = 10) -> Image.Image:
    """Draw videos as rows of crops, green for real and red for fake, with id, method and frame numbers.

    Args:
        domain: Prepared domain.
        videos: Number of evenly spaced videos.
        frames: Number of evenly spaced crops of each video.

    Raises:
        FileNotFoundError: If the domain has no Parquet files.
    """
    files = sorted(Path(domain, "data").glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{domain} is no prepared domain: expected data/*.parquet.")
    places: dict[str, list[tuple[Path, int]]] = {}
    for file in files:
        for row, video in enumerate(pq.read_table(file, columns=["video_id"])["video_id"].to_pylist()):
            places.setdefault(video, []).append((file, row))
    names = list(places)
    chosen = [names[index] for index in even_indices(len(names), videos)]
    height = CELL + TEXT + MARGIN
    sheet = Image.new("RGB", (frames * (CELL + MARGIN) + MARGIN, len(chosen) * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for line, name in enumerate(chosen):
        rows = [_row(*places[name][index]) for index in even_indices(len(places[name]), frames)]
        top = line * height + MARGIN
        color = COLORS[rows[0]["label"]]
        split = places[name][0][0].name.split("-")[0]
        draw.text((MARGIN, top), f"{split}  {name}  {rows[0]['method']}  {len(places[name])} crops", fill=color)
        for column, crop_row in enumerate(rows):
            left = column * (CELL + MARGIN) + MARGIN
            draw.rectangle((left - 2, top + TEXT - 2, left + CELL + 1, top + TEXT + CELL + 1), fill=color)
            crop = Image.open(io.BytesIO(crop_row["image"]["bytes"])).convert("RGB").resize((CELL, CELL))
            sheet.paste(crop, (left, top + TEXT))
            draw.text((left + 2, top + TEXT + CELL - 12), str(crop_row["frame"]), fill="yellow")
    return sheet


def _row(file: Path, row: int) -> dict[str, Any]:
    parquet = pq.ParquetFile(file)
    ends = np.cumsum([parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)])
    group = int(np.searchsorted(ends, row, side="right"))
    start = int(ends[group - 1]) if group else 0
    return parquet.read_row_group(group).slice(row - start, 1).to_pylist()[0]
