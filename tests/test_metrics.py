import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from gmdf_hf.metrics import OperatingPoint, binary_metrics, crossing, domain_metrics, m_eer, video_scores

SAMPLES = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.5, 0.5001, 1.0])), min_size=2).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@given(SAMPLES)
def test_figures_equal_their_definitions_on_ties(rows):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    metrics = binary_metrics(labels, scores, threshold=0.5)
    pairs = [(fake > real) + 0.5 * (fake == real) for fake in scores[labels == 1] for real in scores[labels == 0]]
    assert metrics.auc == pytest.approx(np.mean(pairs))
    assert metrics.auc == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.acc == pytest.approx(np.mean([(score >= 0.5) == label for label, score in rows]))
    gaps = []
    for threshold in [*np.unique(scores), np.inf]:
        false_fake = (scores[labels == 0] >= threshold).mean()
        false_real = (scores[labels == 1] < threshold).mean()
        gaps.append((abs(false_fake - false_real), (false_fake + false_real) / 2))
    smallest = min(gap for gap, _ in gaps)
    assert any(metrics.eer == pytest.approx(eer) for gap, eer in gaps if gap == pytest.approx(smallest))


@given(SAMPLES)
def test_the_crossing_threshold_gives_its_rates(rows):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    point = crossing(labels, scores)
    assert np.isfinite(point.threshold)
    assert point.false_fake == pytest.approx((scores[labels == 0] >= point.threshold).mean())
    assert point.false_real == pytest.approx((scores[labels == 1] < point.threshold).mean())


def test_prior_weighted_rate_follows_equation_13():
    point = OperatingPoint(threshold=0.5, false_real=0.1, false_fake=0.4)
    assert point.eer == pytest.approx(0.25)
    assert point.prior_weighted(0.2) == pytest.approx(0.2 * 0.4 + 0.8 * 0.1)


def test_m_eer_is_the_worst_domain():
    labels = [0, 0, 1, 1]
    table = pd.DataFrame(
        {
            "domain": ["easy"] * 4 + ["hard"] * 4,
            "video_id": list("abcdabcd"),
            "frame": 0,
            "label": labels * 2,
            "score": [0.1, 0.2, 0.8, 0.9, 0.1, 0.7, 0.6, 0.9],
        }
    )
    figures = domain_metrics(table)
    assert figures["easy"]["frame"]["m"] == 0
    assert figures["hard"]["frame"]["auc"] == 0.75
    assert m_eer(figures) == figures["hard"]["frame"]["m"] == pytest.approx(0.5)


def test_videos_of_equal_name_in_two_domains_stay_apart():
    table = pd.DataFrame(
        {
            "domain": ["x", "x", "y", "y"],
            "video_id": ["000", "000", "000", "001"],
            "label": [0, 0, 1, 0],
            "score": [0.0, 0.5, 1.0, 0.2],
        }
    )
    videos = video_scores(table)
    assert videos[["domain", "score"]].values.tolist() == [["x", 0.25], ["y", 1.0], ["y", 0.2]]


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [0.1, 0.2], r"both 0 \(real\) and 1 \(fake\), found \[1\]"),
        ([0, 1], [0.1, float("nan")], "must be finite, found 1"),
        ([0, 1, 1], [0.1, 0.2], "found 2 and 3"),
    ],
)
def test_what_cannot_be_measured_is_refused(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        binary_metrics(np.array(labels), np.array(scores))
