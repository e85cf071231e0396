"""Figures of a table of scores, a row a frame: `domain, video_id, frame, label, score, face_found` (design section 4).

`score` is the probability of fake. Every figure is a function of that table, and says whether it is of frames or of
videos, whose score is the mean of their frames'.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve


@dataclass(frozen=True)
class OperatingPoint:
    """Where the two error rates cross.

    Attributes:
        threshold: Scores of at least this are called fake.
        false_real: Share of fakes called real.
        false_fake: Share of reals called fake.
    """

    threshold: float
    false_real: float
    false_fake: float

    @property
    def eer(self) -> float:
        """Equal error rate: the mean of the two rates where they come closest."""
        return (self.false_real + self.false_fake) / 2

    def prior_weighted(self, real_share: float) -> float:
        """``M^i = P_real * FRR + (1 - P_real) * FAR`` (Eq. 13): a real face rejected, a fake one accepted."""
        return real_share * self.false_fake + (1 - real_share) * self.false_real


@dataclass(frozen=True)
class BinaryMetrics:
    """Figures of one set of scores.

    Attributes:
        real: Number of real samples.
        fake: Number of fake samples.
        acc: Accuracy at the given threshold.
        auc: Area under the ROC curve.
        ap: Average precision, fake being the class to find.
        eer: Equal error rate.
        m: `M^i` of Eq. 13, at the point of the EER.
    """

    real: int
    fake: int
    acc: float
    auc: float
    ap: float
    eer: float
    m: float


def _check(labels: np.ndarray, scores: np.ndarray) -> None:
    if len(labels) != len(scores):
        raise ValueError(f"As many scores as labels are needed, found {len(scores)} and {len(labels)}.")
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError(f"Labels must hold both 0 (real) and 1 (fake), found {np.unique(labels).tolist()}.")
    if not np.isfinite(scores).all():
        raise ValueError(f"Scores must be finite, found {int((~np.isfinite(scores)).sum())} that are not.")


def crossing(labels: np.ndarray, scores: np.ndarray) -> OperatingPoint:
    """The point of the ROC curve where the two error rates are closest.

    Args:
        labels: 0 real, 1 fake, shape `(n,)`.
        scores: Probability of fake, shape `(n,)`.

    Raises:
        ValueError: If a class is missing or a score is not finite.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    _check(labels, scores)
    false_fake, found, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    best = int(np.argmin(np.abs(false_fake - (1 - found))))
    # The first point of the curve calls nothing fake; its threshold is infinite and could not be stored as JSON.
    threshold = float(np.nextafter(scores.max(), np.inf)) if np.isinf(thresholds[best]) else float(thresholds[best])
    return OperatingPoint(threshold, float(1 - found[best]), float(false_fake[best]))


def binary_metrics(
    labels: np.ndarray, scores: np.ndarray, threshold: float = 0.5, real_share: float | None = None
) -> BinaryMetrics:
    """All figures of one set of scores.

    Args:
        labels: 0 real, 1 fake, shape `(n,)`.
        scores: Probability of fake, shape `(n,)`.
        threshold: Scores of at least this are called fake, for the accuracy.
        real_share: Prior P_real of Eq. 13; the share in `labels` when None.

    Raises:
        ValueError: If a class is missing or a score is not finite.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    point = crossing(labels, scores)
    return BinaryMetrics(
        real=int((labels == 0).sum()),
        fake=int((labels == 1).sum()),
        acc=float(((scores >= threshold) == labels).mean()),
        auc=float(roc_auc_score(labels, scores)),
        ap=float(average_precision_score(labels, scores)),
        eer=point.eer,
        m=point.prior_weighted(float((labels == 0).mean()) if real_share is None else real_share),
    )


def video_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each video, the videos of different domains kept apart whatever their names."""
    return table.groupby(["domain", "video_id"], sort=True, as_index=False).agg(
        label=("label", "first"), score=("score", "mean")
    )


def domain_metrics(table: pd.DataFrame, threshold: float = 0.5) -> dict[str, dict[str, dict]]:
    """Figures of every domain in a table of scores.

    Args:
        table: Columns `domain, video_id, label, score`.
        threshold: For the accuracy.

    Returns:
        `{domain: {"frame": BinaryMetrics as dict, "video": the same}}`.
    """
    figures: dict[str, dict[str, dict]] = {}
    for level, rows in (("frame", table), ("video", video_scores(table))):
        for domain, of_domain in rows.groupby("domain", sort=False):
            metrics = binary_metrics(of_domain["label"].to_numpy(), of_domain["score"].to_numpy(), threshold)
            figures.setdefault(str(domain), {})[level] = asdict(metrics)
    return figures


def m_eer(figures: dict[str, dict[str, dict]], level: str = "frame") -> float:
    """``M_EER = max(M^1, ..., M^N)`` over test domains (Eq. 13): the worst domain counts, not their mean."""
    return max(of_domain[level]["m"] for of_domain in figures.values())
