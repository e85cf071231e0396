"""Figures that count videos without a score, against loops over random fillings."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from gmdf_hf.evaluation.coverage import video_coverage
from gmdf_hf.evaluation.intervals import measure
from gmdf_hf.evaluation.tables import coverage_table, domain_table


def draw_table(missing: float = 0.3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 60])
    scores = 1 / (1 + np.exp(-rng.normal(labels)))
    scores[rng.random(100) < missing] = np.nan
    rows = [
        ("x", f"{video:03}", frame, label, score)
        for video, (label, score) in enumerate(zip(labels, scores, strict=True))
        for frame in range(2 if score == score else 1)
    ]
    return pd.DataFrame(rows, columns=["domain", "video_id", "frame", "label", "score"])


def test_readings_against_a_loop():
    table = draw_table()
    found = video_coverage(table, 0.5)["x"]
    videos = table.drop_duplicates("video_id")
    labels, scores = videos["label"].to_numpy(), videos["score"].to_numpy()
    has = ~np.isnan(scores)
    assert found["videos"] == 100 and found["scored"] == has.sum() and found["share"] == has.mean()
    assert found["scored"] < 100
    for reading, filled in (("as_real", 0.0), ("as_fake", 1.0)):
        full = np.where(has, scores, filled)
        assert found[reading]["auc"] == pytest.approx(roc_auc_score(labels, full))
        assert found[reading]["acc"] == pytest.approx(((full >= 0.5) == labels).mean())
    # At random: an unscored video takes a place among all others that does not depend on its class.
    rng = np.random.default_rng(1)
    aucs, accuracies = [], []
    for _ in range(400):
        full = np.where(has, scores, np.where(rng.random(100) < 0.5, -rng.random(100), 1 + rng.random(100)))
        aucs.append(roc_auc_score(labels, full))
        accuracies.append(((full >= 0.5) == labels).mean())
    assert found["as_chance"]["auc"] == pytest.approx(np.mean(aucs), abs=0.01)
    assert found["as_chance"]["acc"] == pytest.approx(np.mean(accuracies), abs=0.01)


def test_figures_are_of_the_scored_rows_and_tables_show_the_share():
    table = draw_table()
    whole, scored = measure(table, replicates=20), measure(table[table["score"].notna()], replicates=20)
    assert whole["domains"] == scored["domains"] and whole["intervals"] == scored["intervals"]
    rows = domain_table(whole)
    share = f"{100 * whole['coverage']['x']['share']:.2f}"
    assert [row[rows[0].index("scored")] for row in rows[1:]] == [share, share]
    assert len(coverage_table(whole)) == 2 and len(coverage_table(scored)) == 1
    assert video_coverage(draw_table(0.0))["x"]["as_chance"] == video_coverage(draw_table(0.0))["x"]["left_out"]
