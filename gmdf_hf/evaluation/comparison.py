"""Paired comparison of two methods: bootstrap over the same videos and over seeds.

The scores of two methods on one video are correlated, so the interval of the difference is narrower than two separate
intervals suggest.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata

from gmdf_hf.evaluation.intervals import BLOCK, bin_edges, bin_samples, draw_weights, histogram_auc
from gmdf_hf.evaluation.score_table import DomainScores, split_domains, video_keys


@dataclass(frozen=True)
class Estimate:
    """Mean AUC, or a difference of two, with its bootstrap interval `(low, high)`."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`; `difference` is method minus other."""

    method: Estimate
    other: Estimate
    difference: Estimate


def auc_replicates(
    tables: Sequence[pd.DataFrame], domains: Sequence[str], replicates: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Frame AUC of several score tables of the same videos, for the sample and for bootstrap draws of videos.

    Args:
        tables: Score tables of runs on the same videos.
        domains: Domains to average the AUC over.
        replicates: Number of bootstrap draws; every table uses the same draws.
        seed: Seed of the draws.

    Returns:
        AUC of each table, shape `(tables,)`, and of each table and draw, shape `(tables, replicates)`.

    Raises:
        ValueError: If a domain is missing or the tables do not hold the same videos.
    """
    if not all("method" in table.columns for table in tables):  # not a key of the tables without it
        tables = [table.drop(columns="method", errors="ignore") for table in tables]
    means, drawn = [], []
    for domain in domains:
        samples = [_of_domain(table, domain) for table in tables]
        first = samples[0][0]
        if not all(videos.equals(first) for videos, _ in samples):
            raise ValueError(
                f"The score tables hold different videos of domain {domain!r}; a paired comparison needs equal ones."
            )
        # Seeded by the domain's name: its draws do not depend on its position.
        rng = np.random.default_rng((seed, zlib.crc32(domain.encode())))
        edges = [bin_edges([scores], 0.5) for _, scores in samples]
        binned = [bin_samples(scores, edge) for (_, scores), edge in zip(samples, edges, strict=True)]
        videos = [counts.shape[1] for counts in binned[0].counts]
        everything = [np.ones((n, 1), np.float32) for n in videos]
        means.append([_auc(of_table.counts, everything)[0] for of_table in binned])
        blocks = []
        for start in range(0, replicates, BLOCK):
            weights = [draw_weights(n, min(BLOCK, replicates - start), rng) for n in videos]
            blocks.append(np.stack([_auc(of_table.counts, weights) for of_table in binned]))
        drawn.append(np.concatenate(blocks, axis=1))
    return np.mean(means, axis=0), np.mean(drawn, axis=0)


def _of_domain(table: pd.DataFrame, domain: str) -> tuple[pd.DataFrame, DomainScores]:
    """Videos and scores of a domain, sorted by video."""
    rows = table[table["domain"] == domain]
    if not len(rows):
        raise ValueError(f"A score table to compare has no domain {domain!r}.")
    keys = video_keys(rows)
    rows = rows.astype({key: str for key in keys if key != "label"}).sort_values(keys, kind="stable")
    return rows[keys].drop_duplicates(ignore_index=True), split_domains(rows)[domain]


def _auc(counts: Sequence, weights: Sequence[np.ndarray]) -> np.ndarray:
    real, fake = ((of_class @ w).astype(float) for of_class, w in zip(counts, weights, strict=True))
    return histogram_auc(real, fake)


def delong(labels: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """p-value of the hypothesis that two methods have the same AUC on the same samples (DeLong et al. 1988).

    The samples must be independent: videos, not frames. The structural components come from mid-ranks (Sun and Xu
    2014), in O(n log n).

    Args:
        labels: 0 real, 1 fake, shape `(n,)`.
        one: Scores of the first method, shape `(n,)`.
        other: Scores of the second method, shape `(n,)`.

    Returns:
        Two-sided p-value; 1 if the methods order all pairs alike, 0 if they differ without any variance.
    """
    scores = np.stack([one, other]).astype(float)
    fake, real = scores[:, labels == 1], scores[:, labels == 0]
    m, n = fake.shape[1], real.shape[1]
    joint = rankdata(np.concatenate([fake, real], axis=1), axis=1)
    of_fake = (joint[:, :m] - rankdata(fake, axis=1)) / n  # share of the reals below each fake
    of_real = 1 - (joint[:, m:] - rankdata(real, axis=1)) / m  # share of the fakes above each real
    difference = of_fake[0].mean() - of_fake[1].mean()
    variance = np.var(of_fake[0] - of_fake[1], ddof=1) / m + np.var(of_real[0] - of_real[1], ddof=1) / n
    if variance <= 1e-18:
        return 1.0 if abs(difference) <= 1e-12 else 0.0
    return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def delong_tables(one: pd.DataFrame, other: pd.DataFrame, domain: str) -> float:
    """`delong` on the video scores of a domain in two score tables.

    Raises:
        ValueError: See `auc_replicates`.
    """
    (videos, first), (same, second) = (_of_domain(table, domain) for table in (one, other))
    if not videos.equals(same):
        raise ValueError(f"The score tables hold different videos of domain {domain!r}.")
    first, second = first.by_video(), second.by_video()
    return delong(first.labels, first.scores, second.scores)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): the smallest times n, the next times n - 1, ..., ascending."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors), 1)
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result.tolist()


def compare(
    settings: Iterable[tuple[Sequence[pd.DataFrame], Sequence[pd.DataFrame], Sequence[str]]],
    replicates: int = 1000,
    seed: int = 0,
    coverage: float = 0.95,
) -> Comparison:
    """Mean AUC of two methods and of their difference over settings, domains and seeds, with intervals.

    Each replicate draws videos (the same for all tables) and, for each method, as many seeds as it has, both with
    replacement. The intervals therefore cover the choice of test videos and of seeds.

    Args:
        settings: For each setting: score tables of the method (one per seed), score tables of the other method, and the
            domains to average over.
        replicates: Number of draws.
        seed: Seed of the draws.
        coverage: Fraction of the replicates inside the interval.

    Raises:
        ValueError: See `auc_replicates`.
    """
    rng = np.random.default_rng((seed, 1))
    values, replicated = [], []
    for method, other, domains in settings:
        means, drawn = auc_replicates([*method, *other], domains, replicates, seed)
        for rows in (slice(len(method)), slice(len(method), None)):
            picked = rng.integers(len(drawn[rows]), size=drawn[rows].shape)
            values.append(means[rows].mean())
            replicated.append(np.take_along_axis(drawn[rows], picked, 0).mean(0))
    values = np.reshape(values, (-1, 2)).mean(0)
    replicated = np.reshape(replicated, (-1, 2, replicates)).mean(0)

    def estimate(*weights: int) -> Estimate:
        low, high = np.quantile(weights @ replicated, [(1 - coverage) / 2, (1 + coverage) / 2])
        return Estimate(float(weights @ values), (float(low), float(high)))

    return Comparison(method=estimate(1, 0), other=estimate(0, 1), difference=estimate(1, -1))


def difference_table(
    first: pd.DataFrame, others: Mapping[str, pd.DataFrame], replicates: int = 1000
) -> tuple[list[list[str]], list[str]]:
    """Compare score tables with a first one, domain by domain.

    Args:
        first: Score table of the first run.
        others: Score tables of the others, by name.
        replicates: See `compare`.

    Returns:
        Header and one row per domain and run: difference of the frame AUC in points with its bootstrap interval,
        DeLong's p-value on the video scores, and the same with Holm's correction for all rows; and a sentence for each
        pair that cannot be compared.
    """
    rows = [["domain", "run", "frame AUC, difference", "95 %", "p (DeLong, videos)", "p (Holm)"]]
    tests, notes = [], []
    for name, table in others.items():
        for domain in [str(domain) for domain in first["domain"].unique() if (table["domain"] == domain).any()]:
            try:
                found = compare([([first], [table], [domain])], replicates).difference
                tests.append(delong_tables(first, table, domain))
            except ValueError as error:
                notes.append(f"{name}: {error}")
                continue
            interval = f"{100 * found.interval[0]:.1f} to {100 * found.interval[1]:.1f}"
            rows.append([domain, name, f"{100 * found.value:.2f}", interval])
    for row, p_value, adjusted in zip(rows[1:], tests, holm(tests), strict=True):
        row += [f"{p_value:.2g}", f"{adjusted:.2g}"]
    return rows, list(dict.fromkeys(notes))
