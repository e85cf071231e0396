"""Score of a person or video from the scores of its frames, in their order."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from gmdf_hf.evaluation.score_table import video_keys

PersonScore = Literal["mean", "top", "segment"]
PERSON_SCORES: tuple[PersonScore, ...] = ("mean", "top", "segment")
TOP_SHARE = 0.25  # of the frames, at least one
SEGMENT_FRAMES = 4


def aggregate(scores: np.ndarray, how: PersonScore) -> float:
    """Join the scores of a person's frames.

    `mean` is the evaluation's. The others find a forgery of a part of the video: `top` is the mean of the highest
    quarter of the frames, `segment` the highest mean of `SEGMENT_FRAMES` consecutive frames, which a single wrong frame
    moves less.

    Args:
        scores: Scores in the order of the frames, at least one, shape `(frames,)`.
        how: One of `PERSON_SCORES`.
    """
    scores = np.asarray(scores, dtype=float)
    if how == "mean":
        return float(scores.mean())
    if how == "top":
        count = max(1, round(TOP_SHARE * len(scores)))
        return float(np.sort(scores)[-count:].mean())
    width = min(SEGMENT_FRAMES, len(scores))
    return float(np.lib.stride_tricks.sliding_window_view(scores, width).mean(axis=1).max())


def video_table(table: pd.DataFrame, how: PersonScore) -> pd.DataFrame:
    """One row per video of a score table, with its joined score, sorted by the key columns."""
    ordered = table.sort_values("frame", kind="stable") if "frame" in table.columns else table
    groups = ordered.groupby(video_keys(table), sort=True, observed=True, dropna=False)["score"]
    return groups.agg(lambda scores: aggregate(scores.to_numpy(), how)).reset_index()
