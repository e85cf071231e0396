"""The table of scores, a row a frame: `domain, video_id, frame, label, score, face_found`; by domain and by video.

`method`, which forgery made the frame, is a further column if one of the domains has it, and empty for the others.
"""

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
    return pq.read_table(path, read_dictionary=["domain", "video_id", "method"]).to_pandas()


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
    # A domain without methods has none in a table that has the column: by default, its videos would be dropped.
    videos = table.groupby(video_keys(table), sort=True, as_index=False, observed=True, dropna=False)
    return videos.agg(score=("score", "mean"))


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
    videos = table.groupby(video_keys(table), sort=False, observed=True, dropna=False).ngroup().to_numpy()
    domains = {}
    for code, name in enumerate(names):
        rows = np.flatnonzero(codes == code)
        domains[str(name)] = DomainScores(labels[rows], scores[rows], pd.factorize(videos[rows])[0])
    return domains


def split_methods(table: pd.DataFrame) -> dict[tuple[str, str], DomainScores]:
    """The fakes of each forgery with all reals of its domain, where a domain knows of several forgeries.

    Args:
        table: As for `split_domains`.

    Returns:
        Scores by domain and method, in the order of the names.
    """
    if "method" not in table.columns:
        return {}
    named = (table["label"] == 1) & table["method"].notna() & (table["method"] != "")
    forgeries = table.loc[named, ["domain", "method"]].drop_duplicates().astype(str).sort_values(["domain", "method"])
    found = {}
    for domain, methods in forgeries.groupby("domain")["method"]:
        rows = table[table["domain"] == domain]
        for method in methods if len(methods) > 1 else ():
            found[domain, method] = split_domains(rows[(rows["label"] == 0) | (rows["method"] == method)])[domain]
    return found
