import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from gmdf_hf.evaluation.metrics import (
    Crossing,
    binary_metrics,
    cross_auc,
    crossing,
    domain_metrics,
    expected_calibration_error,
    m_eer,
    method_auc,
    pooled_metrics,
)

SAMPLES = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.5, 0.5001, 1.0])), min_size=2).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@given(SAMPLES)
def test_metrics_match_definitions_with_ties(rows):
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
def test_crossing_threshold_reproduces_error_rates(rows):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    point = crossing(labels, scores)
    assert np.isfinite(point.threshold)
    assert point.false_fake == pytest.approx((scores[labels == 0] >= point.threshold).mean())
    assert point.false_real == pytest.approx((scores[labels == 1] < point.threshold).mean())


def test_prior_weighted_rate_follows_equation_13():
    point = Crossing(threshold=0.5, false_real=0.1, false_fake=0.4)
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


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [0.1, 0.2], r"both 0 \(real\) and 1 \(fake\), found \[1\]"),
        ([0, 1], [0.1, float("nan")], "must be finite, found 1"),
        ([0, 1, 1], [0.1, 0.2], "found 3 labels and 2 scores"),
        ([0, 2], [0.1, 0.2], r"must be 0 \(real\) and 1 \(fake\), found \[0, 2\]"),
        ([0, 1], [0.1, 1.2], r"in \[0, 1\], found 0.1 to 1.2"),
    ],
)
def test_invalid_labels_and_scores_raise(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        binary_metrics(np.array(labels), np.array(scores))


RANDOM = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@given(st.one_of(SAMPLES, RANDOM), st.floats(0, 1))
def test_metrics_match_scikit_learn(rows, threshold):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    metrics = binary_metrics(labels, scores, threshold)
    called = scores >= threshold
    assert metrics.acc == pytest.approx(accuracy_score(labels, called))
    assert metrics.auc == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.ap == pytest.approx(average_precision_score(labels, scores))
    assert metrics.brier == pytest.approx(brier_score_loss(labels, scores))
    assert metrics.fpr == pytest.approx(called[labels == 0].mean())
    assert metrics.fnr == pytest.approx(1 - called[labels == 1].mean())
    # Between two points of the curve the rates cross at the interpolated rate; ours is that of the nearer point.
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    after = int(np.argmax(fpr - (1 - tpr) >= 0))
    gaps = (fpr - (1 - tpr))[after - 1 : after + 1]
    crossed = np.interp(0, gaps, fpr[after - 1 : after + 1])
    assert abs(metrics.eer - crossed) <= np.abs(gaps).min() / 2 + 1e-9


@given(st.integers(2, 40), st.integers(1, 20), st.integers(1, 20))
def test_closed_forms_of_degenerate_scores(levels, reals, fakes):
    labels = np.repeat([0, 1], [reals, fakes])
    constant = binary_metrics(labels, np.full(len(labels), 1 / levels))
    assert constant.auc == 0.5
    assert constant.eer == 0.5
    assert constant.ap == pytest.approx(fakes / (reals + fakes))
    perfect = binary_metrics(labels, labels.astype(float))
    assert (perfect.auc, perfect.ap, perfect.acc, perfect.eer, perfect.m) == (1, 1, 1, 0, 0)
    assert (perfect.ece, perfect.brier) == (0, 0)
    wrong = binary_metrics(labels, 1.0 - labels)
    assert (wrong.auc, wrong.acc, wrong.brier, wrong.ece, wrong.eer) == (0, 0, 1, 1, 1)


@given(RANDOM)
def test_calibration_error_matches_literal_loop(rows):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    total = 0.0
    for number in range(15):
        low, high = np.linspace(0, 1, 16)[number : number + 2]
        inside = (scores >= low) & ((scores < high) | (number == 14))
        if inside.any():
            total += inside.mean() * abs(labels[inside].mean() - scores[inside].mean())
    assert expected_calibration_error(labels, scores) == pytest.approx(total)


def two_domains() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "domain": ["x"] * 4 + ["y"] * 4,
            "video_id": list("abcdabcd"),
            "label": [0, 0, 1, 1] * 2,
            "score": [0.1, 0.3, 0.4, 0.6, 0.5, 0.6, 0.8, 0.9],
        }
    )


def test_perfect_domains_can_have_low_pooled_auc():
    table = two_domains()
    assert {name: of["frame"]["auc"] for name, of in domain_metrics(table).items()} == {"x": 1.0, "y": 1.0}
    pairs = [(fake > real) + (fake == real) / 2 for fake in (0.4, 0.6, 0.8, 0.9) for real in (0.1, 0.3, 0.5, 0.6)]
    assert pooled_metrics(table)["auc"] == pooled_metrics(table, "video")["auc"] == pytest.approx(np.mean(pairs))
    # Reals of y stand above the fakes of x: of the four pairs one is right and one is tied, 0.6 and 0.6.
    expected = pd.DataFrame([[1.0, 1.0], [1.5 / 4, 1.0]], index=["x", "y"], columns=["x", "y"])
    pd.testing.assert_frame_equal(cross_auc(table), expected)


def test_m_eer_with_a_given_prior():
    table = pd.DataFrame(
        {"domain": "x", "video_id": list("abcde"), "label": [0, 0, 0, 1, 1], "score": [0.1, 0.2, 0.6, 0.5, 0.9]}
    )
    # The rates cross at 0.6, where a third of the reals is rejected (FRR) and half of the fakes accepted (FAR).
    assert m_eer(domain_metrics(table)) == pytest.approx(3 / 5 / 3 + 2 / 5 / 2)
    assert m_eer(domain_metrics(table, real_share=0.9)) == pytest.approx(0.9 / 3 + 0.1 / 2)
    assert m_eer(domain_metrics(table, real_share=0.5)) == domain_metrics(table)["x"]["frame"]["eer"]


def test_domain_of_one_class_gives_nan_and_warning():
    table = two_domains()
    table = table[(table["domain"] == "x") | (table["label"] == 1)]
    with pytest.warns(UserWarning, match="Domain 'y' has 0 real and 2 fake videos"):
        figures = domain_metrics(table)
    for name in ("auc", "ap", "eer", "m", "fpr"):
        assert np.isnan(figures["y"]["frame"][name]), name
    assert figures["y"]["frame"]["fnr"] == 0
    assert figures["x"]["frame"]["auc"] == 1
    assert np.isnan(m_eer(figures))
    matrix = cross_auc(table)
    assert np.isnan(matrix.loc["y", "y"]) and matrix.loc["x", "y"] == 1


def test_method_auc_uses_all_reals_of_the_domain():
    rng = np.random.default_rng(0)
    methods = np.array(["real", "real", "a", "b"])[rng.integers(4, size=120)]
    table = pd.DataFrame(
        {
            "domain": "x",
            "method": methods,
            "video_id": [f"{n % 7}" for n in range(120)],
            "label": (methods != "real").astype(int),
            "score": rng.random(120).round(1),
        }
    )
    for level in ("frame", "video"):
        found = method_auc(table, level)
        assert list(found) == ["x"] and list(found["x"]) == ["a", "b"]
        rows = (
            table
            if level == "frame"
            else table.groupby(["method", "video_id", "label"], as_index=False)["score"].mean()
        )
        reals = rows.loc[rows["label"] == 0, "score"]
        for method, value in found["x"].items():
            fakes = rows.loc[rows["method"] == method, "score"]
            pairs = [(fake > real) + (fake == real) / 2 for fake in fakes for real in reals]
            assert value == pytest.approx(np.mean(pairs))
    fakes = method_auc(table[table["label"] == 1])["x"]
    assert list(fakes) == ["a", "b"] and np.isnan(list(fakes.values())).all()


def test_pooled_auc_of_one_class_is_nan():
    table = two_domains()
    assert np.isnan(list(pooled_metrics(table[table["label"] == 1]).values())).all()
    with pytest.warns(UserWarning, match="has 2 real and 0 fake videos"):
        assert np.isnan(m_eer(domain_metrics(table[table["label"] == 0])))
