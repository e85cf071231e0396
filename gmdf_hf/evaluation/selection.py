"""Which epoch is kept and where its threshold lies: the source domains' validation videos decide, nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gmdf_hf.common.errors import DomainError
from gmdf_hf.evaluation.metrics import crossing, domain_metrics


def select(validation: pd.DataFrame, domains: Sequence[str]) -> tuple[float, float]:
    """What a model is chosen by, and its threshold.

    Args:
        validation: Scores of the source domains' validation splits, a row a frame.
        domains: Names of these domains.

    Returns:
        The mean over domains of the AUC of frames: the epoch with the highest is kept. And the score where the two
        error rates cross over all these frames together: scores of at least this are called fake.

    Raises:
        DomainError: If of a domain no real or no fake frame could be read and scored.
    """
    for name in domains:
        labels = validation["label"][validation["domain"] == name]
        found = [int((labels == label).sum()) for label in (0, 1)]
        if 0 in found:
            raise DomainError(
                f"Domain {name!r}, split 'validation', needs real and fake images that can be read, for the epoch is "
                f"chosen by them. Found {found[0]} real and {found[1]} fake; the run's skipped.csv lists the others."
            )
    figures = domain_metrics(validation)
    mean_auc = sum(figure["frame"]["auc"] for figure in figures.values()) / len(figures)
    return mean_auc, crossing(validation["label"].to_numpy(), validation["score"].to_numpy()).threshold
