"""Thresholds at a chosen false-positive rate, calibration, and their file."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binom

from gmdf_hf.common.errors import UserError
from gmdf_hf.evaluation.metrics import expected_calibration_error
from gmdf_hf.evaluation.operating_point import (
    OperatingPoint,
    allowed_alarms,
    band_start,
    calibrated,
    clopper_pearson,
    fit_calibration,
    margins,
    needed_reals,
    read_operating_point,
    threshold_for,
    write_operating_point,
)

POINT = OperatingPoint(
    threshold=0.8,
    uncertain_from=0.6,
    max_fpr=0.01,
    confidence=0.95,
    reals=1000,
    false_alarms=4,
    fpr_interval=(0.001, 0.01),
    fakes=10,
    found=7,
    tpr_interval=(0.35, 0.93),
    slope=0.5,
    intercept=1.0,
    person_score="mean",
    data="x",
    weights="abc",
)


def test_clopper_pearson_is_the_inversion_of_the_binomial_test():
    for count, total in ((0, 20), (3, 40), (40, 40), (1, 1)):
        low, high = clopper_pearson(count, total)
        assert low == 0 if count == 0 else binom.sf(count - 1, total, low) == pytest.approx(0.025)
        assert high == 1 if count == total else binom.cdf(count, total, high) == pytest.approx(0.025)


@pytest.mark.parametrize(("rate", "needed"), [(0.1, 29), (0.05, 59), (0.01, 299), (0.001, 2995)])
def test_a_rate_needs_so_many_reals(rate, needed):
    assert needed_reals(rate) == needed
    assert (1 - rate) ** needed <= 0.05 < (1 - rate) ** (needed - 1)
    assert allowed_alarms(needed, rate) == 0 and allowed_alarms(needed - 1, rate) == -1
    for reals in (needed, 3 * needed, 7 * needed):  # against a loop over the binomial's tail
        slow = max(k for k in range(reals) if binom.cdf(k, reals, rate) <= 0.05)
        assert allowed_alarms(reals, rate) == slow


def test_the_threshold_keeps_its_promise():
    """Of many draws of 300 reals, at most one in twenty leads to a threshold that flags more than 5 %."""
    rng = np.random.default_rng(0)
    kept = [1 - threshold_for(rng.random(300), 0.05) <= 0.05 for _ in range(1000)]
    assert 0.93 <= np.mean(kept) <= 0.99


def test_what_the_data_cannot_show_is_refused_with_the_number_needed():
    with pytest.raises(UserError, match=r"200 real samples cannot show .* 0.100% .*: 2995 are needed"):
        threshold_for(np.linspace(0, 0.5, 200), 0.001)
    with pytest.raises(UserError, match="no threshold keeps"):
        threshold_for(np.ones(300), 0.01)


def test_ties_are_not_flagged():
    scores = np.asarray([0.5] * 280 + [0.9] * 20)
    threshold = threshold_for(scores, 0.05)
    assert threshold > 0.9 and (scores >= threshold).sum() == 0
    assert threshold_for(np.sort(scores), 0.2) <= 0.9


def test_the_band_covers_compatible_thresholds_and_missed_fakes():
    reals, fakes = np.linspace(0, 0.5, 400), np.linspace(0.1, 1, 100)
    threshold = threshold_for(reals, 0.05)
    start = band_start(reals, fakes, threshold, 0.05, None)
    flagged = int((reals >= start).sum())
    assert start < threshold
    assert clopper_pearson(flagged, 400)[0] <= 0.05 < clopper_pearson(flagged + 1, 400)[0]
    assert band_start(reals, fakes, threshold, 0.05, 0.1) == pytest.approx(np.quantile(fakes, 0.1, method="lower"))


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_calibration_minimises_the_likelihood_and_restores_reliability(method):
    rng = np.random.default_rng(0)
    true = rng.normal(size=4000) * 2
    labels = (rng.random(4000) < 1 / (1 + np.exp(-true))).astype(int)
    shift = 0.7 if method == "platt" else 0.0
    scores = 1 / (1 + np.exp(-(3 * true + shift)))  # overconfident, and shifted
    slope, intercept = fit_calibration(labels, scores, method)
    assert slope == pytest.approx(1 / 3, abs=0.03) and intercept == pytest.approx(-shift / 3, abs=0.1)
    fakes = labels.sum()
    target = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (4000 - fakes + 2))

    def loss(values):
        logits = values[0] * margins(scores) + (values[1] if method == "platt" else 0)
        return np.mean(np.logaddexp(0, logits) - target * logits)

    best = minimize(loss, [1.0, 0.0], tol=1e-10).x
    assert slope == pytest.approx(best[0], abs=1e-3)
    before = expected_calibration_error(labels, scores)
    after = expected_calibration_error(labels, calibrated(scores, slope, intercept))
    assert before > 0.1 and after < 0.03


def test_separated_and_reversed_scores():
    labels = np.repeat([0, 1], 50)
    slope, _ = fit_calibration(labels, np.repeat([0.1, 0.9], 50), "platt")
    assert np.isfinite(slope)
    with pytest.raises(UserError, match="those of fakes are not above"):
        fit_calibration(labels, np.repeat([0.9, 0.1], 50), "temperature")


def test_the_file_is_read_back_and_belongs_to_its_weights(tmp_path):
    path = tmp_path / "operating_point.json"
    write_operating_point(path, POINT)
    again = read_operating_point(path, "abc")
    assert again.describe() == POINT.describe() and "at most 1.000% of real faces" in again.describe()
    assert [again.label(score) for score in (0.5, 0.6, 0.8)] == ["real", "uncertain", "fake"]
    assert again.probability(0.5) == pytest.approx(1 / (1 + np.exp(-1)))
    with pytest.raises(UserError, match="made for other weights"):
        read_operating_point(path, "xyz")
    fields = json.loads(path.read_text())
    for change in ({"schema": 2}, {"threshold": 3}, {"threshold": "x"}, {"more": 1}, {"slope": float("inf")}):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(UserError, match="is no operating point"):
            read_operating_point(path, "abc")
