"""Metrics of a score table (`score_table`): frame and video level, per domain and across domains.

`score` is the probability of fake; the score of a video is the mean over its frames. An undefined metric, such as the
AUC of a domain with one class, is `nan` with a warning. Confidence intervals are in `intervals`.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from importlib.resources import files

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from gmdf_hf.evaluation.low_fpr import LOW_FPR, low_fpr_metrics
from gmdf_hf.evaluation.score_table import LEVELS, split_domains, split_methods, video_scores

CALIBRATION_BINS = 15
# The same figures as a metric of `evaluate`: evaluate.load(EVALUATE_MODULE).
EVALUATE_MODULE = str(files("gmdf_hf.evaluation") / "deepfake_metrics")


@dataclass(frozen=True)
class Crossing:
    """Point of the ROC curve where the two error rates are closest.

    Attributes:
        threshold: Scores at or above it are classified as fake.
        false_real: Fraction of fakes classified as real.
        false_fake: Fraction of reals classified as fake.
    """

    threshold: float
    false_real: float
    false_fake: float

    @property
    def eer(self) -> float:
        """Equal error rate: mean of the two error rates at this point."""
        return (self.false_real + self.false_fake) / 2

    def prior_weighted(self, real_share: float) -> float:
        """``M^i = P_real * FRR + (1 - P_real) * FAR`` (Eq. 13): a real face rejected, a fake one accepted."""
        return real_share * self.false_fake + (1 - real_share) * self.false_real


@dataclass(frozen=True)
class BinaryMetrics:
    """Metrics of one set of scores.

    Attributes:
        real: Number of real samples.
        fake: Number of fake samples.
        acc: Accuracy at the given threshold.
        auc: Area under the ROC curve.
        ap: Average precision; fake is the positive class.
        eer: Equal error rate.
        m: `M^i` of Eq. 13, at the point of the EER.
        fpr: Fraction of reals classified as fake at the given threshold.
        fnr: Fraction of fakes classified as real at the given threshold.
        ece: Expected calibration error, 15 bins of equal width.
        brier: Mean squared error of the probability of fake.
        tpr_1: Largest TPR at an FPR of at most 1 %.
        tpr_01: The same at 0.1 %.
        pauc: Partial AUC up to an FPR of 10 %, standardised.
    """

    real: int
    fake: int
    acc: float
    auc: float
    ap: float
    eer: float
    m: float
    fpr: float
    fnr: float
    ece: float
    brier: float
    tpr_1: float
    tpr_01: float
    pauc: float


def _check(labels: np.ndarray, scores: np.ndarray, both: bool = True) -> None:
    if len(labels) != len(scores):
        raise ValueError(
            f"Labels and scores must have one length, found {len(labels)} labels and {len(scores)} scores."
        )
    found = np.unique(labels)
    if not len(found) or not set(found.tolist()) <= {0, 1}:
        raise ValueError(f"Labels must be 0 (real) and 1 (fake), found {found.tolist()[:5]}.")
    if both and len(found) < 2:
        raise ValueError(f"Labels must include both 0 (real) and 1 (fake), found {found.tolist()}.")
    if not np.isfinite(scores).all():
        raise ValueError(f"Scores must be finite, found {int((~np.isfinite(scores)).sum())} non-finite ones.")


def _check_probabilities(scores: np.ndarray) -> None:
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(
            f"Scores must be probabilities of fake, in [0, 1], found {scores.min():.4g} to {scores.max():.4g}."
        )


def crossing(labels: np.ndarray, scores: np.ndarray) -> Crossing:
    """Point of the ROC curve where the two error rates are closest.

    Args:
        labels: 0 real, 1 fake, shape `(n,)`.
        scores: Higher for fake, shape `(n,)`.

    Raises:
        ValueError: If a class is missing or a score is not finite.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    _check(labels, scores)
    false_fake, found, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    best = int(np.argmin(np.abs(false_fake - (1 - found))))
    # The first point of the curve classifies nothing as fake; its infinite threshold is not valid JSON.
    threshold = float(np.nextafter(scores.max(), np.inf)) if np.isinf(thresholds[best]) else float(thresholds[best])
    return Crossing(threshold, float(1 - found[best]), float(false_fake[best]))


def expected_calibration_error(labels: np.ndarray, scores: np.ndarray) -> float:
    """Expected calibration error: mean gap between predicted and actual fraction of fakes over bins of equal width.

    Args:
        labels: 0 real, 1 fake, shape `(n,)`.
        scores: Probability of fake, shape `(n,)`.

    Raises:
        ValueError: If a score is not a probability.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    _check(labels, scores, both=False)
    _check_probabilities(scores)
    bins = calibration_bin(scores)
    gaps = np.bincount(bins, weights=scores - labels, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(scores))


def calibration_bin(scores: np.ndarray) -> np.ndarray:
    """Calibration bin of each score: ``[i / 15, (i + 1) / 15)``, the last one closed."""
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    return np.searchsorted(edges, scores, side="right")


def _binary_metrics(
    labels: np.ndarray, scores: np.ndarray, threshold: float, real_share: float | None
) -> BinaryMetrics:
    """As `binary_metrics`, with `nan` for metrics undefined without both classes."""
    _check(labels, scores, both=False)
    _check_probabilities(scores)
    fake, called_fake = labels == 1, scores >= threshold
    reals, fakes = int((~fake).sum()), int(fake.sum())
    both = bool(reals and fakes)
    point = crossing(labels, scores) if both else None
    return BinaryMetrics(
        real=reals,
        fake=fakes,
        acc=float((called_fake == fake).mean()),
        auc=float(roc_auc_score(labels, scores)) if both else np.nan,
        ap=float(average_precision_score(labels, scores)) if both else np.nan,
        eer=point.eer if point else np.nan,
        m=point.prior_weighted(reals / len(labels) if real_share is None else real_share) if point else np.nan,
        fpr=float((called_fake & ~fake).sum() / reals) if reals else np.nan,
        fnr=float((~called_fake & fake).sum() / fakes) if fakes else np.nan,
        ece=expected_calibration_error(labels, scores),
        brier=float(np.square(scores - labels).mean()),
        **(low_fpr_metrics(labels, scores) if both else dict.fromkeys(LOW_FPR, np.nan)),
    )


def binary_metrics(
    labels: np.ndarray, scores: np.ndarray, threshold: float = 0.5, real_share: float | None = None
) -> BinaryMetrics:
    """All metrics of one set of scores.

    Args:
        labels: 0 real, 1 fake, shape `(n,)`.
        scores: Probability of fake, shape `(n,)`.
        threshold: Threshold of the accuracy and the two error rates.
        real_share: Prior P_real of Eq. 13; None uses the fraction of reals in `labels`.

    Raises:
        ValueError: If a class is missing, or a score or `real_share` lies outside [0, 1].
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    _check(labels, scores)
    if real_share is not None and not 0 <= real_share <= 1:
        raise ValueError(f"`real_share` must lie in [0, 1], found {real_share}.")
    return _binary_metrics(labels, scores, threshold, real_share)


def domain_metrics(
    table: pd.DataFrame, threshold: float = 0.5, real_share: float | None = None
) -> dict[str, dict[str, dict]]:
    """Metrics of every domain of a score table.

    Args:
        table: Columns `domain, video_id, label, score`, optionally `method`.
        threshold: Scores at or above it are classified as fake.
        real_share: Prior P_real of Eq. 13; None uses the fraction of reals in each domain.

    Returns:
        `{domain: {"frame": ..., "video": ...}}`, each a `BinaryMetrics` as dict. For a domain with one class, metrics
        that need both are `nan` and a warning names the domain.

    Raises:
        ValueError: If labels or scores are invalid.
    """
    figures: dict[str, dict[str, dict]] = {}
    for name, frames in split_domains(table).items():
        for level, samples in zip(LEVELS, (frames, frames.by_video()), strict=True):
            metrics = _binary_metrics(samples.labels, samples.scores, threshold, real_share)
            figures.setdefault(name, {})[level] = asdict(metrics)
        if not metrics.real or not metrics.fake:
            warnings.warn(
                f"Domain {name!r} has {metrics.real} real and {metrics.fake} fake videos: AUC, AP, EER and M need both "
                "classes and are nan.",
                stacklevel=2,
            )
    return figures


def m_eer(figures: dict[str, dict[str, dict]], level: str = "frame") -> float:
    """``M_EER = max(M^1, ..., M^N)`` over test domains (Eq. 13): the worst domain, not the mean.

    `nan` if `M` of any domain is undefined.
    """
    return float(np.max([of_domain[level]["m"] for of_domain in figures.values()]))


def pooled_metrics(table: pd.DataFrame, level: str = "frame") -> dict[str, float]:
    """AUC, TPR at small FPR and partial AUC of all domains together, as one threshold for all domains sees them.

    Args:
        table: Columns `domain, video_id, label, score`.
        level: `frame` or `video`.

    Returns:
        `auc` and the metrics of `low_fpr`; `nan` if a class is missing in all domains.
    """
    rows = table if level == "frame" else video_scores(table)
    labels, scores = rows["label"].to_numpy(), rows["score"].to_numpy(dtype=float)
    _check(labels, scores, both=False)
    if not labels.any() or labels.all():
        return dict.fromkeys(("auc", *LOW_FPR), np.nan)
    return {"auc": float(roc_auc_score(labels, scores)), **low_fpr_metrics(labels, scores)}


def method_auc(table: pd.DataFrame, level: str = "frame") -> dict[str, dict[str, float]]:
    """AUC of the fakes of each forgery method against all reals of their domain, for domains with several methods.

    Args:
        table: Columns `domain, video_id, label, score`, optionally `method`.
        level: `frame` or `video`.

    Returns:
        `{domain: {method: auc}}`; `nan` where a domain has no reals.
    """
    figures: dict[str, dict[str, float]] = {}
    for (domain, method), frames in split_methods(table).items():
        samples = frames if level == "frame" else frames.by_video()
        reals, fakes = (samples.scores[samples.labels == label] for label in (0, 1))
        figures.setdefault(domain, {})[method] = _auc_against_sorted(np.sort(reals), fakes)
    return figures


def cross_auc(table: pd.DataFrame, level: str = "frame") -> pd.DataFrame:
    """AUC of the reals of one domain against the fakes of another, for all pairs.

    Args:
        table: Columns `domain, video_id, label, score`.
        level: `frame` or `video`.

    Returns:
        Rows: domain of the reals; columns: domain of the fakes; the diagonal is the AUC within a domain. `nan` where a
        class is missing.
    """
    domains = split_domains(table)
    samples = {name: frames if level == "frame" else frames.by_video() for name, frames in domains.items()}
    fakes = {name: of.scores[of.labels == 1] for name, of in samples.items()}
    rows = {}
    for name, of_domain in samples.items():
        reals = np.sort(of_domain.scores[of_domain.labels == 0])
        rows[name] = {other: _auc_against_sorted(reals, scores) for other, scores in fakes.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(samples))


def _auc_against_sorted(reals: np.ndarray, fakes: np.ndarray) -> float:
    if not len(reals) or not len(fakes):
        return np.nan
    below = np.searchsorted(reals, fakes, side="left").sum() + np.searchsorted(reals, fakes, side="right").sum()
    return float(below / (2 * len(reals) * len(fakes)))
