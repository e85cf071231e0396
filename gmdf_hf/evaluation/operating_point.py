"""Operating point of a detector: threshold at a chosen false-positive rate, calibrated probability, uncertain band.

It is stored in a file of its own beside the model, whose weights do not change. All scores are those of whole videos
or pictures, as the decision is: frames of one video are not independent, so they are one sample.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import betaincinv

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.files import write_json

FILE_NAME = "operating_point.json"
SCHEMA = 1
Method = Literal["temperature", "platt"]
Label = Literal["real", "uncertain", "fake"]
SMALLEST = 1e-12  # scores are kept this far from 0 and 1 before their logit is taken


@dataclass(frozen=True)
class OperatingPoint:
    """Where a detector is used, and what is known about it there.

    Attributes:
        threshold: Scores of at least this are called fake.
        uncertain_from: Scores from here to the threshold are called uncertain.
        max_fpr: The false-positive rate asked for.
        confidence: Probability with which the threshold keeps to it, over draws of the real samples.
        reals: Number of real samples that the threshold was chosen on.
        false_alarms: Real samples at or above the threshold.
        fpr_interval: 95 % Clopper-Pearson interval of the false-positive rate.
        fakes: Number of fake samples; 0 if only reals were given.
        found: Fake samples at or above the threshold.
        tpr_interval: 95 % Clopper-Pearson interval of the true-positive rate; None without fakes.
        slope: Factor on the score's logit; None without fakes. With `intercept` 0 it is one over the temperature.
        intercept: Shift of the score's logit.
        person_score: How the scores of a person's frames were joined: see `gmdf_hf.evaluation.aggregation`.
        data: What it was chosen on, in words.
        weights: Digest of the detector's weights, for which alone it holds.
    """

    threshold: float
    uncertain_from: float
    max_fpr: float
    confidence: float
    reals: int
    false_alarms: int
    fpr_interval: tuple[float, float]
    fakes: int
    found: int
    tpr_interval: tuple[float, float] | None
    slope: float | None
    intercept: float | None
    person_score: str
    data: str
    weights: str

    def label(self, score: float) -> Label:
        """Verdict on a score."""
        return "fake" if score >= self.threshold else "uncertain" if score >= self.uncertain_from else "real"

    def probability(self, score: float) -> float | None:
        """Calibrated probability of fake, for the share of fakes of the calibration data; None if not calibrated."""
        if self.slope is None or self.intercept is None:
            return None
        return float(calibrated(np.asarray([score]), self.slope, self.intercept)[0])

    def describe(self) -> str:
        """One line for people."""
        low, high = self.fpr_interval
        text = (
            f"fake from {self.threshold:.3f}: at most {self.max_fpr:.3%} of real faces flagged, with "
            f"{self.confidence:.0%} confidence ({self.false_alarms} of {self.reals} real ones of {self.data} were, "
            f"95 % interval {low:.2%} to {high:.2%})"
        )
        if self.tpr_interval is not None:
            text += f"; {self.found} of {self.fakes} fakes found"
        return text + (f"; uncertain from {self.uncertain_from:.3f}" if self.uncertain_from < self.threshold else "")


def clopper_pearson(count: int, total: int, coverage: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934)."""
    tail = (1 - coverage) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, total - count + 1, tail))
    return low, 1.0 if count == total else float(betaincinv(count + 1, total - count, 1 - tail))


def needed_reals(max_fpr: float, confidence: float = 0.95) -> int:
    """Number n of real samples, none flagged, that show a rate: ``(1 - max_fpr)^n <= 1 - confidence``."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-max_fpr) - 1e-9)


def allowed_alarms(reals: int, max_fpr: float, confidence: float = 0.95) -> int:
    """Largest number k of flagged reals for which the rate is shown, -1 if none.

    With a threshold just above the (k+1)-th highest of n real scores, the false-positive rate is distributed as
    Beta(k + 1, n - k) (Wilks 1941); its `confidence` quantile, which is the one-sided Clopper-Pearson limit, must not
    exceed `max_fpr`.
    """
    counts = np.arange(reals)
    limits = betaincinv(counts + 1, reals - counts, confidence)
    return int(np.searchsorted(limits, max_fpr * (1 + 1e-9), side="right")) - 1


def threshold_for(reals: np.ndarray, max_fpr: float, confidence: float = 0.95) -> float:
    """Smallest threshold that keeps the false-positive rate at or below `max_fpr` with this confidence.

    Args:
        reals: Scores of independent real samples, shape `(n,)`.
        max_fpr: The rate asked for, in (0, 1).
        confidence: See `OperatingPoint`.

    Raises:
        UserError: If the samples cannot show this rate; the message has the number needed.
    """
    allowed = allowed_alarms(len(reals), max_fpr, confidence)
    if allowed < 0:
        raise UserError(
            f"{len(reals)} real samples cannot show a false-positive rate of {max_fpr:.3%} with {confidence:.0%} "
            f"confidence: {needed_reals(max_fpr, confidence)} are needed, even if none of them is flagged.",
            "Add real faces of the kind that will be judged, or ask for a higher --max_fpr.",
        )
    threshold = float(np.nextafter(np.sort(reals)[::-1][allowed], np.inf))
    if threshold > 1:
        raise UserError(
            f"More than {allowed} of {len(reals)} real samples have the highest score, 1: no threshold keeps the "
            f"false-positive rate at {max_fpr:.3%}.",
            "This detector takes these faces for fakes: choose another one, or ask for a higher --max_fpr.",
        )
    return threshold


def band_start(
    reals: np.ndarray, fakes: np.ndarray, threshold: float, max_fpr: float, miss_rate: float | None
) -> float:
    """Lower end of the uncertain band.

    The samples leave the threshold uncertain: the band begins at the lowest one whose observed false-positive rate is
    still compatible with `max_fpr` (its lower 95 % limit does not exceed it). With fakes and a `miss_rate` it also
    covers all scores but the lowest, which at most that share of the fakes share: only below is a face called real.
    """
    counts = np.arange(1, len(reals))
    compatible = betaincinv(counts, len(reals) - counts + 1, 0.025) <= max_fpr
    start = float(np.nextafter(np.sort(reals)[::-1][int(compatible.sum())], np.inf))
    if miss_rate is not None:
        start = min(start, float(np.quantile(fakes, miss_rate, method="lower")))
    return min(start, threshold)


def margins(scores: np.ndarray) -> np.ndarray:
    """Logit of scores."""
    scores = np.clip(np.asarray(scores, dtype=float), SMALLEST, 1 - SMALLEST)
    return np.log(scores) - np.log1p(-scores)


def calibrated(scores: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Probability of fake, ``sigmoid(slope * logit(score) + intercept)``."""
    return 1 / (1 + np.exp(-(slope * margins(scores) + intercept)))


def fit_calibration(labels: np.ndarray, scores: np.ndarray, method: Method) -> tuple[float, float]:
    """Fit slope and intercept of `calibrated` by logistic regression on the scores' logits.

    The targets are Platt's, ``(fakes + 1) / (fakes + 2)`` and ``1 / (reals + 2)`` instead of 1 and 0: without them the
    slope diverges where the classes separate.

    Args:
        labels: 0 real, 1 fake, shape `(n,)`.
        scores: Probability of fake, shape `(n,)`.
        method: `temperature` fits the slope only, `platt` the intercept, too.

    Raises:
        UserError: If the scores of fakes are not above those of reals.
    """
    from sklearn.linear_model import LogisticRegression  # takes seconds, and predictions need the rest of this module

    fakes = int(labels.sum())
    target = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (len(labels) - fakes + 2))
    rows = np.tile(margins(scores), 2)[:, None]
    classes = np.repeat([1, 0], len(labels))
    model = LogisticRegression(C=np.inf, fit_intercept=method == "platt", tol=1e-8, max_iter=1000)
    model.fit(rows, classes, sample_weight=np.concatenate([target, 1 - target]))
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0]) if method == "platt" else 0.0
    if slope <= 0:
        raise UserError(
            f"The scores cannot be calibrated: those of fakes are not above those of reals (slope {slope:.3g}).",
            "Check the labels of the domain and --fake_label.",
        )
    return slope, intercept


def write_operating_point(path: Path, point: OperatingPoint) -> None:
    """Write an operating point as JSON."""
    write_json(path, {"schema": SCHEMA, **asdict(point)})


def read_operating_point(path: Path, weights: str) -> OperatingPoint:
    """Read an operating point and check that it belongs to a detector.

    Args:
        path: File of `write_operating_point`.
        weights: Digest of the detector's weights.

    Raises:
        UserError: If the file is damaged, of another version, or was made for other weights.
    """
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = fields.pop("schema")
        if schema != SCHEMA:
            raise ValueError(f"schema {schema}, this version reads {SCHEMA}")
        point = OperatingPoint(**fields)
        numbers = [point.threshold, point.uncertain_from, point.slope or 1.0, point.intercept or 0.0]
        if not all(math.isfinite(value) for value in numbers) or not 0 <= point.uncertain_from <= point.threshold <= 1:
            raise ValueError(f"threshold {point.threshold}, uncertain from {point.uncertain_from}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no operating point: {error}.", "Make it again with gmdf calibrate.") from error
    if point.weights != weights:
        raise UserError(
            f"{path} was made for other weights: expected {weights}, this model's, found {point.weights}.",
            "Make it again with gmdf calibrate, or delete the file.",
        )
    return point
