"""The left end of the ROC curve, where a service works: TPR at small false-positive rates and partial AUC.

Both take the points of the curve from the highest threshold down, `(points, replicates)`, beginning at (0, 0): one
implementation serves a set of scores and many bootstrap replicates.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_curve

# Key of a metric: false-positive rate at which the TPR is taken.
TPR_RATES = {"tpr_1": 0.01, "tpr_01": 0.001}
PARTIAL_FPR = 0.1
LOW_FPR = (*TPR_RATES, "pauc")


def low_fpr_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """TPR at each of `TPR_RATES` and the partial AUC of one set of scores with both classes.

    Args:
        labels: 0 real, 1 fake, shape `(n,)`.
        scores: Higher for fake, shape `(n,)`.
    """
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    figures = low_fpr_figures(fpr[:, None], tpr[:, None])
    return {name: float(value[0]) for name, value in figures.items()}


def low_fpr_figures(fpr: np.ndarray, tpr: np.ndarray) -> dict[str, np.ndarray]:
    """The same for the curves of many replicates.

    Args:
        fpr: False-positive rates, ascending along the first axis, shape `(points, replicates)`.
        tpr: True-positive rates, in the same form.

    Returns:
        Each metric, shape `(replicates,)`.
    """
    figures = {name: tpr_at(fpr, tpr, rate) for name, rate in TPR_RATES.items()}
    return figures | {"pauc": partial_auc(fpr, tpr, PARTIAL_FPR)}


def tpr_at(fpr: np.ndarray, tpr: np.ndarray, rate: float) -> np.ndarray:
    """Largest TPR of a threshold whose FPR is at most `rate`, without interpolation, shape `(replicates,)`.

    With fewer than `1 / rate` reals this is the TPR without any false alarm (`shows_rate`).
    """
    return np.where(fpr <= rate * (1 + 1e-9), tpr, 0).max(0)


def shows_rate(reals: int, rate: float) -> bool:
    """Whether so many reals can show a false-positive rate above 0 that small; tables omit the TPR otherwise."""
    return reals * rate >= 1 - 1e-9


def partial_auc(fpr: np.ndarray, tpr: np.ndarray, max_fpr: float) -> np.ndarray:
    """Area under the curve up to `max_fpr`, standardised (McClish 1989): 0.5 is chance, 1 is perfect.

    As `sklearn.metrics.roc_auc_score(max_fpr=...)`.
    """
    left, right = fpr[:-1], np.minimum(fpr[1:], max_fpr)
    width = np.clip(right - left, 0, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.nan_to_num((tpr[1:] - tpr[:-1]) / (fpr[1:] - left), posinf=0)
    area = (width * (tpr[:-1] + slope * width / 2)).sum(0)
    least = max_fpr**2 / 2
    return (1 + (area - least) / (max_fpr - least)) / 2
