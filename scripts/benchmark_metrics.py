"""Time and memory of all figures with intervals, for many rows of scores: a JSON line.

python scripts/benchmark_metrics.py --rows 10000000
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from gmdf_hf.common.options import Options, parse_options
from gmdf_hf.evaluation.intervals import measure
from gmdf_hf.evaluation.score_table import read_scores

DOMAINS = 5


def _names(prefix: str, numbers: np.ndarray) -> pd.Categorical[str]:
    return pd.Categorical.from_codes(numbers, pd.Index([f"{prefix}{number:07}" for number in range(numbers.max() + 1)]))


def draw_scores(rows: int, frames: int = 32, seed: int = 0) -> pd.DataFrame:
    """Table of distinct scores; the frames of a video share a random component."""
    rng = np.random.default_rng(seed)
    video = np.arange(rows) // frames
    domain, label = video % DOMAINS, video // DOMAINS % 2
    value = rng.normal(size=video[-1] + 1)[video] + 1.2 * label + rng.normal(size=rows) + 0.2 * domain
    return pd.DataFrame(
        {
            "domain": _names("domain", domain),
            "video_id": _names("video", video),
            "frame": (np.arange(rows) % frames).astype("int32"),
            "label": label.astype("int8"),
            "score": 1 / (1 + np.exp(-value)),
            "face_found": True,
        }
    )


def time_figures(rows: int, replicates: int = 1000) -> dict[str, float]:
    """Read a table with `rows` rows and compute all figures.

    Returns:
        `read_seconds` for reading, `seconds` for computing, and `peak_gib`, the peak memory of this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.parquet"
        draw_scores(rows).to_parquet(path)
        start = time.perf_counter()
        table = read_scores(path)
        read = time.perf_counter()
        measure(table, replicates=replicates)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "rows": rows,
        "replicates": replicates,
        "read_seconds": round(read - start, 1),
        "seconds": round(time.perf_counter() - read, 1),
        "peak_gib": round(peak, 2),
    }


class BenchmarkOptions(Options):
    """How much to measure."""

    rows: int = Field(10_000_000, ge=1, description="Frames.")
    replicates: int = Field(1000, ge=1, description="Draws of the videos.")


if __name__ == "__main__":
    options = parse_options(BenchmarkOptions, None, __doc__)
    print(json.dumps(time_figures(options.rows, options.replicates)))
