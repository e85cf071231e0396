"""Bootstrap confidence intervals of all metrics of a score table.

Frames of one video are correlated, so the bootstrap resamples videos, each with all of its frames. It resamples within
each domain and class: the test set fixes the numbers of real and of fake videos.

A replicate is a vector of video weights. Its metrics come from score histograms: the video-by-bin counts, computed
once, times the weights of many replicates. Up to `MAX_BINS` different scores the histogram is exact; above, bins are
quantiles of each domain, and replicates are shifted by the binning error of the point estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from gmdf_hf.evaluation.coverage import scored_rows, video_coverage
from gmdf_hf.evaluation.low_fpr import LOW_FPR, low_fpr_figures
from gmdf_hf.evaluation.metrics import CALIBRATION_BINS, cross_auc, domain_metrics, m_eer, method_auc, pooled_metrics
from gmdf_hf.evaluation.score_table import LEVELS, DomainScores, split_domains, split_methods

MAX_BINS = 4096
BLOCK = 64  # replicates at a time; fewer for many videos, because the weights are a dense matrix
MAX_WEIGHTS = 2**25
RATES = ("acc", "auc", "ap", "eer", "m", "fpr", "fnr", "ece", "brier", *LOW_FPR)


@dataclass(frozen=True)
class Binned:
    """Histogram of one domain at one level, as pairs (real, fake)."""

    counts: tuple[csr_array, csr_array]  # samples of each video in each bin, (bins, videos of the class)
    means: tuple[np.ndarray, np.ndarray]  # mean score of each bin, (bins, 1)
    squares: tuple[np.ndarray, np.ndarray]  # mean squared error of each bin, (bins, 1)


def bin_edges(samples: list[DomainScores], threshold: float) -> np.ndarray:
    """Lower bin edges for all domains; they include the threshold and the calibration bins."""
    given = np.append(np.linspace(0, 1, CALIBRATION_BINS + 1)[:-1], threshold)
    values = [np.unique(domain.scores) for domain in samples]
    if sum(map(len, values)) > MAX_BINS:
        shares = np.linspace(0, 1, MAX_BINS // len(samples))
        values = [np.quantile(domain.scores, shares, method="lower") for domain in samples]
    return np.unique(np.concatenate([*values, given]))


def bin_samples(samples: DomainScores, edges: np.ndarray) -> Binned:
    """Histogram of one domain; the videos of a class are in order of first appearance."""

    def of_class(label: int) -> tuple[csr_array, np.ndarray, np.ndarray]:
        rows = np.flatnonzero(samples.labels == label)
        scores = samples.scores[rows]
        bins = np.searchsorted(edges, scores, side="right") - 1
        videos, names = pd.factorize(samples.videos[rows])
        ones = np.ones(len(rows), dtype=np.float32)
        counts = csr_array((ones, (bins, videos)), shape=(len(edges), len(names)))
        total = np.maximum(np.bincount(bins, minlength=len(edges)), 1)
        means = (np.bincount(bins, scores, len(edges)) / total)[:, None]
        squares = (np.bincount(bins, (scores - label) ** 2, len(edges)) / total)[:, None]
        return counts, means, squares

    real, fake = of_class(0), of_class(1)
    return Binned((real[0], fake[0]), (real[1], fake[1]), (real[2], fake[2]))


def _figures(
    real: np.ndarray, fake: np.ndarray, binned: Binned, edges: np.ndarray, threshold: float, real_share: float | None
) -> dict[str, np.ndarray]:
    """Metrics of many replicates, from histograms of shape `(bins, replicates)`."""
    reals, fakes = real.sum(0), fake.sum(0)
    real_below, fake_below = real.cumsum(0) - real, fake.cumsum(0) - fake
    real_above, fake_above = reals - real_below, fakes - fake_below  # at least the bin's lower edge
    at = np.searchsorted(edges, threshold)
    called = (real_above[at], fake_above[at]) if at < len(edges) else (np.zeros_like(reals), np.zeros_like(fakes))
    share = reals / (reals + fakes) if real_share is None else real_share
    # From the highest threshold down, as in `crossing`; the first one classifies nothing as fake.
    false_fake, found = histogram_curve(real, fake)
    false_real = 1 - found
    low_fpr = low_fpr_figures(false_fake, found)
    best = np.abs(false_fake - false_real).argmin(0)[None]
    false_fake, false_real = (np.take_along_axis(rate, best, 0)[0] for rate in (false_fake, false_real))
    starts = np.searchsorted(edges, np.linspace(0, 1, CALIBRATION_BINS + 1)[:-1])
    gaps = real * binned.means[0] + fake * (binned.means[1] - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(fake_above / (fake_above + real_above))
    return {
        "acc": (reals - called[0] + called[1]) / (reals + fakes),
        "auc": (fake * (real_below + real / 2)).sum(0) / (reals * fakes),
        "ap": (fake * precision).sum(0) / fakes,
        "eer": (false_fake + false_real) / 2,
        "m": share * false_fake + (1 - share) * false_real,
        "fpr": called[0] / reals,
        "fnr": (fakes - called[1]) / fakes,
        "ece": np.abs(np.add.reduceat(gaps, starts)).sum(0) / (reals + fakes),
        "brier": ((real * binned.squares[0]).sum(0) + (fake * binned.squares[1]).sum(0)) / (reals + fakes),
        **low_fpr,
    }


def histogram_curve(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC curve of each replicate: FPR and TPR from the highest threshold down, shape `(bins + 1, replicates)`."""
    nothing = np.zeros((1, real.shape[1]))
    fpr, tpr = (of_class[::-1].cumsum(0) / of_class.sum(0) for of_class in (real, fake))
    return np.concatenate([nothing, fpr]), np.concatenate([nothing, tpr])


def draw_weights(count: int, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` videos is drawn in each replicate, shape `(count, replicates)`."""
    weights = np.zeros((replicates, count), np.float32)
    if count:
        for row in weights:
            row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return np.ascontiguousarray(weights.T)


def draw_histograms(counts: csr_array, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Histograms of one class for bootstrap draws of its videos.

    Args:
        counts: Samples of each video in each bin, shape `(bins, videos)`.
        replicates: Number of draws.
        rng: Random generator.

    Returns:
        Shape `(bins, replicates)`.
    """
    bins, videos = counts.shape
    if counts.nnz == videos and counts.sum(dtype=np.float64) == videos:
        # One sample per video: drawing videos equals drawing bins, which are far fewer.
        shares = counts.sum(1, dtype=np.float64) / max(videos, 1)
        return rng.multinomial(videos, shares, size=replicates).T if videos else np.zeros((bins, replicates))
    return counts @ draw_weights(videos, replicates, rng)


def _blocks(
    domains: list[Binned], replicates: int, rng: np.random.Generator
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Histograms (real, fake) of every domain; the first block is the sample itself."""
    videos = max(counts.shape[1] for binned in domains for counts in binned.counts)
    block = max(1, min(BLOCK, MAX_WEIGHTS // videos))
    yield [(_total(binned.counts[0]), _total(binned.counts[1])) for binned in domains]
    for done in range(0, replicates, block):
        size = min(block, replicates - done)
        drawn = [[draw_histograms(counts, size, rng).astype(float) for counts in binned.counts] for binned in domains]
        yield [(real, fake) for real, fake in drawn]


def _total(counts: csr_array) -> np.ndarray:
    """Samples in each bin over all videos, shape `(bins, 1)`."""
    return counts.sum(1, dtype=np.float64)[:, None]


def histogram_auc(real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """AUC of each replicate, from histograms of shape `(bins, replicates)`; `nan` where a class is missing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (fake * (real.cumsum(0) - real / 2)).sum(0) / (real.sum(0) * fake.sum(0))


def _cross(histograms: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Cross-AUC of each replicate, shape `(domains of reals, domains of fakes, replicates)`."""
    below = np.stack([(real.cumsum(0) - real / 2) / real.sum(0) for real, _ in histograms])
    fakes = np.stack([fake / fake.sum(0) for _, fake in histograms])
    return np.einsum("ibr,jbr->ijr", below, fakes, optimize=True)


def point_figures(table: pd.DataFrame, threshold: float = 0.5, real_share: float | None = None) -> dict:
    """All metrics of a score table, without intervals.

    Args:
        table: Columns `domain, video_id, label, score`, optionally `method`.
        threshold: Scores at or above it are classified as fake; choose it on validation videos of the source domains.
        real_share: Prior P_real of Eq. 13; None uses the fraction of reals in each domain.

    Returns:
        `domains`: see `domain_metrics`; `m_eer`, `pooled_auc` and `pooled` (TPR at small FPR, partial AUC) by level;
        `cross_auc` by level, domain of the reals and domain of the fakes; `method_auc` by level, domain and forgery.
    """
    domains = domain_metrics(table, threshold, real_share)
    pooled = {level: pooled_metrics(table, level) for level in LEVELS}
    return {
        "domains": domains,
        "m_eer": {level: m_eer(domains, level) for level in LEVELS},
        "pooled_auc": {level: of_level["auc"] for level, of_level in pooled.items()},
        "pooled": {level: {name: of_level[name] for name in LOW_FPR} for level, of_level in pooled.items()},
        "cross_auc": {level: cross_auc(table, level).to_dict(orient="index") for level in LEVELS},
        "method_auc": {level: method_auc(table, level) for level in LEVELS},
    }


def measure(
    table: pd.DataFrame,
    threshold: float = 0.5,
    real_share: float | None = None,
    replicates: int = 1000,
    seed: int = 0,
    coverage: float = 0.95,
) -> dict:
    """All metrics of a score table, with bootstrap intervals over videos.

    Args:
        table: See `point_figures`.
        threshold: See `point_figures`; it is fixed, not resampled.
        real_share: See `point_figures`; None uses the fraction of reals in each replicate.
        replicates: Number of bootstrap draws.
        seed: Seed of the draws.
        coverage: Fraction of the replicates inside an interval.

    Returns:
        The result of `point_figures` on the rows with a score, `coverage`, and `intervals`: the same structure as the
        former with `[low, high]` in place of each number.

    Raises:
        ValueError: If there are fewer than 2 replicates, or labels or scores are invalid.
    """
    if replicates < 2:
        raise ValueError(f"`replicates` must be at least 2, found {replicates}.")
    counted, table = video_coverage(table, threshold), scored_rows(table)
    exact = point_figures(table, threshold, real_share) | {"coverage": counted}
    domains, methods = split_domains(table), split_methods(table)
    samples = {"frame": list(domains.values()), "video": [domain.by_video() for domain in domains.values()]}
    forged = {"frame": list(methods.values()), "video": [method.by_video() for method in methods.values()]}
    found: dict[str, dict[tuple, list]] = {level: {} for level in LEVELS}
    for number, level in enumerate(LEVELS):
        edges = bin_edges(samples[level], threshold)
        binned = [bin_samples(domain, edges) for domain in samples[level]]
        for histograms in _blocks(binned, replicates, np.random.default_rng((seed, number))):
            values = _replicate(list(domains), histograms, binned, edges, threshold, real_share)
            for key, value in values.items():
                found[level].setdefault(key, []).append(value)
        binned = [bin_samples(method, edges) for method in forged[level]]
        for histograms in _blocks(binned, replicates, np.random.default_rng((seed, number, 1))) if methods else ():
            for names, (real, fake) in zip(methods, histograms, strict=True):
                found[level].setdefault(("method_auc", *names), []).append(histogram_auc(real, fake))
    return exact | {"intervals": _collect(found, exact, coverage)}


def _replicate(
    names: list[str],
    histograms: list[tuple[np.ndarray, np.ndarray]],
    binned: list[Binned],
    edges: np.ndarray,
    threshold: float,
    real_share: float | None,
) -> dict[tuple, np.ndarray]:
    """All metrics of a block of replicates, keyed by their place in the result."""
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = [
            _figures(*histogram, of_domain, edges, threshold, real_share)
            for histogram, of_domain in zip(histograms, binned, strict=True)
        ]
        real, fake = (np.sum([pair[label] for pair in histograms], axis=0) for label in (0, 1))
        cross = _cross(histograms)
        values: dict[tuple, np.ndarray] = {
            ("m_eer",): np.max([of["m"] for of in figures], axis=0),
            ("pooled_auc",): histogram_auc(real, fake),
        }
        pooled = low_fpr_figures(*histogram_curve(real, fake))
        values |= {("pooled", name): value for name, value in pooled.items()}
    for i, name in enumerate(names):
        values |= {("domains", name, rate): figures[i][rate] for rate in RATES}
        values |= {("cross_auc", name, other): cross[i, j] for j, other in enumerate(names)}
    return values


def _collect(found: dict[str, dict[tuple, list]], exact: dict, coverage: float) -> dict:
    """Percentiles of the replicates, shifted by the difference between the exact and the binned point estimate."""
    tails = [(1 - coverage) / 2, (1 + coverage) / 2]
    intervals: dict = {"domains": {}, "m_eer": {}, "pooled_auc": {}}
    intervals |= {kind: {level: {} for level in LEVELS} for kind in ("pooled", "cross_auc", "method_auc")}
    for level, figures in found.items():
        for (kind, *names), (binned, *replicates) in figures.items():
            if kind == "domains":
                of_domain = intervals["domains"].setdefault(names[0], {}).setdefault(level, {})
                target, key, value = of_domain, names[1], exact["domains"][names[0]][level][names[1]]
            elif kind == "pooled":
                target, key, value = intervals[kind][level], names[0], exact[kind][level][names[0]]
            elif kind in ("cross_auc", "method_auc"):
                target = intervals[kind][level].setdefault(names[0], {})
                key, value = names[1], exact[kind][level][names[0]][names[1]]
            else:
                target, key, value = intervals[kind], level, exact[kind][level]
            ends = np.quantile(np.concatenate(replicates), tails) + (value - binned[0])
            target[key] = np.clip(ends, 0, 1).tolist()
    return intervals
