"""TPR at small FPR and partial AUC against a slow loop and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from gmdf_hf.evaluation.intervals import histogram_curve
from gmdf_hf.evaluation.low_fpr import low_fpr_figures, low_fpr_metrics, shows_rate


def samples(reals=300, fakes=150, seed=0, steps=None):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [reals, fakes])
    scores = 1 / (1 + np.exp(-rng.normal(labels * 1.5)))
    return labels, scores if steps is None else np.round(scores * steps) / steps


def slow_tpr(labels, scores, rate):
    best = 0.0
    for threshold in [*np.unique(scores), 2.0]:
        if np.mean(scores[labels == 0] >= threshold) <= rate + 1e-12:
            best = max(best, np.mean(scores[labels == 1] >= threshold))
    return best


@pytest.mark.parametrize("steps", [None, 20])
def test_metrics_against_a_loop_and_scikit_learn(steps):
    labels, scores = samples(steps=steps)
    found = low_fpr_metrics(labels, scores)
    assert found["tpr_1"] == pytest.approx(slow_tpr(labels, scores, 0.01))
    assert found["tpr_01"] == pytest.approx(slow_tpr(labels, scores, 0))  # 300 reals cannot show one in a thousand
    assert shows_rate(1000, 0.001) and not shows_rate(999, 0.001)
    assert found["pauc"] == pytest.approx(roc_auc_score(labels, scores, max_fpr=0.1))
    labels, scores = samples(1000, 200, 1, steps)
    assert low_fpr_metrics(labels, scores)["tpr_01"] == pytest.approx(slow_tpr(labels, scores, 0.001))


def test_replicates_from_histograms_give_the_same():
    labels, scores = samples(steps=50)
    edges = np.unique(scores)
    counts = [[np.sum(scores[labels == label] == edge) for edge in edges] for label in (0, 1)]
    real, fake = (np.asarray(of_class, dtype=float)[:, None].repeat(3, 1) for of_class in counts)
    found = low_fpr_figures(*histogram_curve(real, fake))
    for name, value in low_fpr_metrics(labels, scores).items():
        np.testing.assert_allclose(found[name], value)
