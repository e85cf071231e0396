"""Score table, one row per frame: `domain, video_id, frame, label, score, face_found`.

The optional column `method` (forgery method of the frame) exists if any domain has it; it is empty for the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gmdf_hf.common.schema import SCHEMA_VERSION

LEVELS = ("frame", "video")
SCORE_COLUMNS = ("domain", "video_id", "frame", "label", "score", "face_found")


def read_scores(path: Path) -> pd.DataFrame:
    """Read `scores.parquet` with names as categories: ten million rows take 0.3 GiB."""
    return pq.read_table(path, read_dictionary=["domain", "video_id", "method"]).to_pandas()


def write_scores(path: Path, table: pd.DataFrame, about: Mapping[str, object]) -> None:
    """Write `scores.parquet`; what it was made with stands in the file's metadata under `gmdf`, as JSON.

    Args:
        path: File to write.
        table: The scores.
        about: Model, its revision, threshold.
    """
    content = pa.Table.from_pandas(table)
    note = json.dumps({"schema_version": SCHEMA_VERSION, **about})
    pq.write_table(content.replace_schema_metadata({**content.schema.metadata, b"gmdf": note.encode()}), path)


def read_about(path: Path) -> dict[str, Any]:
    """What a score table was made with; empty for one of an earlier version."""
    return json.loads((pq.read_schema(path).metadata or {}).get(b"gmdf", b"{}"))


@dataclass(frozen=True)
class DomainScores:
    """Scores of one domain as arrays.

    Attributes:
        labels: 0 real, 1 fake, shape `(frames,)`.
        scores: Probability of fake, shape `(frames,)`.
        videos: Video index of each frame, from 0, shape `(frames,)`; all frames of a video have one label.
    """

    labels: np.ndarray
    scores: np.ndarray
    videos: np.ndarray

    def by_video(self) -> DomainScores:
        """Aggregate to video level: label and mean frame score of each video."""
        frames = np.bincount(self.videos)
        labels = np.zeros(len(frames), dtype=self.labels.dtype)
        labels[self.videos] = self.labels
        # The mean of equal scores can leave [0, 1] by a rounding error.
        means = np.clip(np.bincount(self.videos, weights=self.scores) / frames, 0, 1)
        return DomainScores(labels, means, np.arange(len(frames)))


def video_keys(table: pd.DataFrame) -> list[str]:
    """Key columns of a video: equal names in two domains, methods or classes are different videos."""
    return [column for column in ("domain", "method", "video_id", "label") if column in table.columns]


def video_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each video, one row per video, sorted by the key columns (categorical columns by category)."""
    # `method` is null for domains without methods; groupby drops null keys by default.
    videos = table.groupby(video_keys(table), sort=True, as_index=False, observed=True, dropna=False)
    return videos.agg(score=("score", "mean"))


def split_domains(table: pd.DataFrame) -> dict[str, DomainScores]:
    """Split a score table into arrays per domain, in order of first appearance.

    Args:
        table: Columns `domain, video_id, label, score`, optionally `method`.

    Raises:
        ValueError: If a column is missing or the table is empty.
    """
    if missing := sorted({"domain", "video_id", "label", "score"} - set(table.columns)):
        raise ValueError(f"A score table needs the column {missing[0]!r}, found {list(table.columns)}.")
    if not len(table):
        raise ValueError("A score table needs rows, found none.")
    codes, names = pd.factorize(table["domain"])
    labels, scores = table["label"].to_numpy(), table["score"].to_numpy(dtype=float)
    videos = table.groupby(video_keys(table), sort=False, observed=True, dropna=False).ngroup().to_numpy()
    domains = {}
    for code, name in enumerate(names):
        rows = np.flatnonzero(codes == code)
        domains[str(name)] = DomainScores(labels[rows], scores[rows], pd.factorize(videos[rows])[0])
    return domains


def split_methods(table: pd.DataFrame) -> dict[tuple[str, str], DomainScores]:
    """Fakes of each forgery method with all reals of their domain, for domains with several methods.

    Args:
        table: As for `split_domains`.

    Returns:
        Scores by `(domain, method)`, sorted.
    """
    if "method" not in table.columns:
        return {}
    named = (table["label"] == 1) & table["method"].notna() & (table["method"] != "")
    forgeries = table.loc[named, ["domain", "method"]].drop_duplicates().astype(str).sort_values(["domain", "method"])
    found = {}
    for domain in forgeries["domain"].unique():
        methods = forgeries.loc[forgeries["domain"] == domain, "method"]
        rows = table[table["domain"] == domain]
        for method in methods if len(methods) > 1 else ():
            found[domain, method] = split_domains(rows[(rows["label"] == 0) | (rows["method"] == method)])[domain]
    return found
