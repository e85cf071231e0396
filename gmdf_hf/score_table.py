"""The table of scores, a row a frame: `domain, video_id, frame, label, score, face_found`; by domain and by video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

LEVELS = ("frame", "video")
SCORE_COLUMNS = ("domain", "video_id", "frame", "label", "score", "face_found")


def read_scores(path: Path) -> pd.DataFrame:
    """Read `scores.parquet`, names as categories: ten million rows then take 0.3 GiB."""
    return pq.read_table(path, read_dictionary=["domain", "video_id"]).to_pandas()


@dataclass(frozen=True)
class DomainScores:
    """Scores of one domain at frame level, as arrays.

    Attributes:
        labels: 0 real, 1 fake, shape `(frames,)`.
        scores: Probability of fake, shape `(frames,)`.
        videos: Number of each frame's video, from 0, shape `(frames,)`; the frames of a video share a label.
    """

    labels: np.ndarray
    scores: np.ndarray
    videos: np.ndarray

    def by_video(self) -> DomainScores:
        """The videos as samples: each video's label and the mean score of its frames."""
        frames = np.bincount(self.videos)
        labels = np.zeros(len(frames), dtype=self.labels.dtype)
        labels[self.videos] = self.labels
        # The mean of equal scores can leave [0, 1] by a rounding error.
        means = np.clip(np.bincount(self.videos, weights=self.scores) / frames, 0, 1)
        return DomainScores(labels, means, np.arange(len(frames)))


def video_keys(table: pd.DataFrame) -> list[str]:
    """Columns that together name a video: videos of one name in two domains, methods or classes are different ones."""
    return [column for column in ("domain", "method", "video_id", "label") if column in table.columns]


def video_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each video, a row a video, sorted (names that are categories: by category)."""
    return table.groupby(video_keys(table), sort=True, as_index=False, observed=True).agg(score=("score", "mean"))


def split_domains(table: pd.DataFrame) -> dict[str, DomainScores]:
    """The table's domains as arrays, in the order of their first rows.

    Args:
        table: Columns `domain, video_id, label, score`, and `method` if there is one.

    Raises:
        ValueError: If a column is missing or the table is empty.
    """
    if missing := sorted({"domain", "video_id", "label", "score"} - set(table.columns)):
        raise ValueError(f"A table of scores needs the column {missing[0]!r}, found {list(table.columns)}.")
    if not len(table):
        raise ValueError("A table of scores needs rows, found none.")
    codes, names = pd.factorize(table["domain"])
    labels, scores = table["label"].to_numpy(), table["score"].to_numpy(dtype=float)
    videos = table.groupby(video_keys(table), sort=False, observed=True).ngroup().to_numpy()
    domains = {}
    for code, name in enumerate(names):
        rows = np.flatnonzero(codes == code)
        domains[str(name)] = DomainScores(labels[rows], scores[rows], pd.factorize(videos[rows])[0])
    return domains
