"""Figures that count videos without a score: a detector that skips hard videos must not look better for it.

A score table holds such a video as a row whose `score` is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from gmdf_hf.evaluation.score_table import video_keys

READINGS = ("left_out", "as_real", "as_fake", "as_chance")


def scored_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with a score."""
    return table[table["score"].notna()]


def video_coverage(table: pd.DataFrame, threshold: float = 0.5) -> dict[str, dict[str, Any]]:
    """Number of scored videos of each domain, and its figures under four readings of the others.

    `left_out` leaves them out, `as_real` and `as_fake` give them a score below or above all others, `as_chance` is the
    expectation if their scores were drawn at random: a pair with such a video is ordered correctly half of the time.

    Args:
        table: Columns `domain, video_id, label, score`, optionally `method`.
        threshold: Scores at or above it are classified as fake.

    Returns:
        For each domain `videos`, `scored`, `share`, and for each reading the video `auc` (`nan` without both classes)
        and `acc`.
    """
    keys = video_keys(table)
    videos = table.groupby(keys, sort=True, observed=True, dropna=False)["score"].mean().reset_index()
    found = {}
    for name, of_domain in videos.groupby("domain", observed=True, sort=False):
        labels, scores = of_domain["label"].to_numpy(), of_domain["score"].to_numpy(dtype=float)
        has = ~np.isnan(scores)
        counts = {"videos": len(has), "scored": int(has.sum()), "share": float(has.mean())}
        plain = {"auc": _auc(labels[has], scores[has]), "acc": _accuracy(labels[has], scores[has], threshold)}
        figures = {"left_out": plain}
        for reading, value in (("as_real", -1.0), ("as_fake", 2.0)):
            filled = np.where(has, scores, value)
            figures[reading] = {"auc": _auc(labels, filled), "acc": _accuracy(labels, filled, threshold)}
        figures["as_chance"] = _chance(labels, has, plain)
        found[str(name)] = counts | figures
    return found


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else np.nan


def _accuracy(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    return float(((scores >= threshold) == (labels == 1)).mean()) if len(labels) else np.nan


def _chance(labels: np.ndarray, has: np.ndarray, plain: dict[str, float]) -> dict[str, float]:
    """Closed form of the expectation over random scores, and of a coin's verdict."""
    if len(np.unique(labels)) < 2:
        auc = np.nan
    else:
        pairs = float(has[labels == 0].mean() * has[labels == 1].mean())
        auc = 0.5 if pairs == 0 else pairs * plain["auc"] + (1 - pairs) / 2
    share = float(has.mean())
    return {"auc": auc, "acc": 0.5 if share == 0 else share * plain["acc"] + (1 - share) / 2}
