"""Scores of persons and videos from their frames."""

import numpy as np
import pandas as pd
import pytest

from gmdf_hf.evaluation.aggregation import aggregate, video_table
from gmdf_hf.evaluation.score_table import video_scores


def test_a_forged_part_shows_in_top_and_segment_but_not_in_the_mean():
    scores = np.full(32, 0.1)
    scores[8:16] = 0.9
    assert aggregate(scores, "mean") == pytest.approx(0.3)
    assert aggregate(scores, "top") == pytest.approx(0.9)
    assert aggregate(scores, "segment") == pytest.approx(0.9)
    single = np.full(32, 0.1)
    single[5] = 0.9  # one wrong frame
    assert aggregate(single, "segment") == pytest.approx((3 * 0.1 + 0.9) / 4)
    for how in ("mean", "top", "segment"):
        assert aggregate(np.asarray([0.4]), how) == 0.4


def test_a_table_is_joined_in_the_order_of_the_frames():
    rows = [
        ("x", "a", 1, frame, score) for frame, score in ((2, 0.9), (0, 0.8), (3, 0.1), (1, 0.7), (5, 0.2), (4, 0.1))
    ]
    rows += [("x", "b", 0, 0, 0.3)]
    table = pd.DataFrame(rows, columns=["domain", "video_id", "label", "frame", "score"])
    assert video_table(table, "segment")["score"].tolist() == pytest.approx([(0.8 + 0.7 + 0.9 + 0.1) / 4, 0.3])
    pd.testing.assert_frame_equal(video_table(table, "mean"), video_scores(table), check_like=True)
