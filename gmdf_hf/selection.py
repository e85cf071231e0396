"""Which epoch is kept and where its threshold lies: the source domains' validation videos decide, nothing else."""

from __future__ import annotations

import pandas as pd

from gmdf_hf.metrics import crossing, domain_metrics


def select(validation: pd.DataFrame) -> tuple[float, float]:
    """What a model is chosen by, and its threshold.

    Args:
        validation: Scores of the source domains' validation splits, a row a frame.

    Returns:
        The mean over domains of the AUC of frames: the epoch with the highest is kept. And the score where the two
        error rates cross over all these frames together: scores of at least this are called fake.
    """
    figures = domain_metrics(validation)
    mean_auc = sum(figure["frame"]["auc"] for figure in figures.values()) / len(figures)
    return mean_auc, crossing(validation["label"].to_numpy(), validation["score"].to_numpy()).threshold
