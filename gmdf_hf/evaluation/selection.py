"""Checkpoint and threshold selection on the validation videos of the source domains."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gmdf_hf.common.errors import DomainError
from gmdf_hf.evaluation.metrics import crossing, domain_metrics


def select(validation: pd.DataFrame, domains: Sequence[str]) -> tuple[float, float]:
    """Compute the selection metric of a checkpoint and its decision threshold.

    Args:
        validation: Score table of the source domains' validation splits.
        domains: Names of the source domains.

    Returns:
        Mean frame AUC over the domains (the epoch with the highest value is kept), and the threshold at the equal error
        point of all frames together: scores at or above it are classified as fake.

    Raises:
        DomainError: If a domain has no readable real frame or no readable fake frame.
    """
    for name in domains:
        labels = validation["label"][validation["domain"] == name]
        found = [int((labels == label).sum()) for label in (0, 1)]
        if 0 in found:
            raise DomainError(
                f"Domain {name!r}, split 'validation', needs readable real and fake images to select the epoch, found "
                f"{found[0]} real and {found[1]} fake. skipped.csv of the run lists the unreadable ones."
            )
    figures = domain_metrics(validation)
    mean_auc = sum(figure["frame"]["auc"] for figure in figures.values()) / len(figures)
    return mean_auc, crossing(validation["label"].to_numpy(), validation["score"].to_numpy()).threshold
