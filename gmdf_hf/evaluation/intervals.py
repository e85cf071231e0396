"""Confidence intervals of the figures by resampling videos, and all figures of a table of scores at once.

Frames of a video resemble each other, so videos are drawn, with replacement, each with all of its frames. They are
drawn domain by domain and class by class: a test set gives the numbers of real and of fake videos, not chance.

A replicate is a weighting of the videos. Its figures come from histograms of scores: the video-by-bin counts, made
once, times the weights of many replicates. With no more different scores than `MAX_BINS` the histogram loses nothing;
with more, bins are quantiles of each domain, and replicates are shifted by what binning does to the figure itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from gmdf_hf.evaluation.metrics import CALIBRATION_BINS, cross_auc, domain_metrics, m_eer, method_auc, pooled_auc
from gmdf_hf.evaluation.score_table import LEVELS, DomainScores, split_domains, split_methods

MAX_BINS = 4096
BLOCK = 64  # replicates at a time, fewer if there are many videos: their weights are a dense matrix
MAX_WEIGHTS = 2**25
RATES = ("acc", "auc", "ap", "eer", "m", "fpr", "fnr", "ece", "brier")


@dataclass(frozen=True)
class Binned:
    """One domain at one level: counts of each video's samples in each bin, and the bins' mean (squared) scores."""

    counts: tuple[csr_array, csr_array]  # of real and of fake videos, (bins, videos of the class)
    means: tuple[np.ndarray, np.ndarray]  # (bins, 1)
    squares: tuple[np.ndarray, np.ndarray]  # of the error, score or 1 - score


def bin_edges(samples: list[DomainScores], threshold: float) -> np.ndarray:
    """Lower edges of the bins, for all domains; threshold and calibration bins fall on edges."""
    given = np.append(np.linspace(0, 1, CALIBRATION_BINS + 1)[:-1], threshold)
    values = [np.unique(domain.scores) for domain in samples]
    if sum(map(len, values)) > MAX_BINS:
        shares = np.linspace(0, 1, MAX_BINS // len(samples))
        values = [np.quantile(domain.scores, shares, method="lower") for domain in samples]
    return np.unique(np.concatenate([*values, given]))


def bin_samples(samples: DomainScores, edges: np.ndarray) -> Binned:
    """Count one domain's samples; the videos of a class keep the order of their first samples."""
    counts, means, squares = [], [], []
    for label in (0, 1):
        rows = np.flatnonzero(samples.labels == label)
        scores = samples.scores[rows]
        bins = np.searchsorted(edges, scores, side="right") - 1
        videos, names = pd.factorize(samples.videos[rows])
        ones = np.ones(len(rows), dtype=np.float32)
        counts.append(csr_array((ones, (bins, videos)), shape=(len(edges), len(names))))
        total = np.maximum(np.bincount(bins, minlength=len(edges)), 1)
        means.append((np.bincount(bins, scores, len(edges)) / total)[:, None])
        squares.append((np.bincount(bins, (scores - label) ** 2, len(edges)) / total)[:, None])
    return Binned(tuple(counts), tuple(means), tuple(squares))


def _figures(
    real: np.ndarray, fake: np.ndarray, binned: Binned, edges: np.ndarray, threshold: float, real_share: float | None
) -> dict[str, np.ndarray]:
    """Figures of many replicates: `real` and `fake` are histograms of shape `(bins, replicates)`."""
    reals, fakes = real.sum(0), fake.sum(0)
    real_below, fake_below = real.cumsum(0) - real, fake.cumsum(0) - fake
    real_above, fake_above = reals - real_below, fakes - fake_below  # at least the bin's lower edge
    at = np.searchsorted(edges, threshold)
    called = (real_above[at], fake_above[at]) if at < len(edges) else (np.zeros_like(reals), np.zeros_like(fakes))
    share = reals / (reals + fakes) if real_share is None else real_share
    # From the highest threshold down, as in `crossing`; first the one that calls nothing fake.
    nothing = np.zeros((1, real.shape[1]))
    false_fake = np.concatenate([nothing, real_above[::-1] / reals])
    false_real = np.concatenate([nothing + 1, fake_below[::-1] / fakes])
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
    }


def draw_weights(count: int, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` videos is drawn in each replicate, shape `(count, replicates)`."""
    weights = np.zeros((replicates, count), np.float32)
    if count:
        for row in weights:
            row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return np.ascontiguousarray(weights.T)


def draw_histograms(counts: csr_array, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Histograms of one class under drawn videos.

    Args:
        counts: Samples of each video in each bin, shape `(bins, videos)`.
        replicates: Number of draws.
        rng: Source of the draws.

    Returns:
        Shape `(bins, replicates)`.
    """
    bins, videos = counts.shape
    if counts.nnz == videos and counts.sum(dtype=np.float64) == videos:
        # A sample a video: drawing videos is drawing bins, which are far fewer.
        shares = counts.sum(1, dtype=np.float64) / max(videos, 1)
        return rng.multinomial(videos, shares, size=replicates).T if videos else np.zeros((bins, replicates))
    return counts @ draw_weights(videos, replicates, rng)


def _blocks(
    domains: list[Binned], replicates: int, rng: np.random.Generator
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Histograms of every domain's reals and fakes; the first block is the sample itself."""
    videos = max(counts.shape[1] for binned in domains for counts in binned.counts)
    block = max(1, min(BLOCK, MAX_WEIGHTS // videos))
    yield [tuple(counts.sum(1, dtype=np.float64)[:, None] for counts in binned.counts) for binned in domains]
    for done in range(0, replicates, block):
        size = min(block, replicates - done)
        yield [
            tuple(draw_histograms(counts, size, rng).astype(float) for counts in binned.counts) for binned in domains
        ]


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
    """All figures of a table of scores, without intervals.

    Args:
        table: Columns `domain, video_id, label, score`, and `method` if there is one.
        threshold: Scores of at least this are called fake; choose it on validation videos of the source domains.
        real_share: Prior P_real of Eq. 13; each domain's own share when None.

    Returns:
        `domains`: see `domain_metrics`; `m_eer` and `pooled_auc` by level; `cross_auc` by level, domain of the reals
        and domain of the fakes; `method_auc` by level, domain and forgery.
    """
    domains = domain_metrics(table, threshold, real_share)
    return {
        "domains": domains,
        "m_eer": {level: m_eer(domains, level) for level in LEVELS},
        "pooled_auc": {level: pooled_auc(table, level) for level in LEVELS},
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
    """All figures of a table of scores, with intervals from videos drawn with replacement.

    Args:
        table: As for `point_figures`.
        threshold: As for `point_figures`; it is not drawn anew.
        real_share: As for `point_figures`; each replicate's own share when None.
        replicates: Times that the videos are drawn.
        seed: Of the draws.
        coverage: Share of the replicates that an interval holds.

    Returns:
        What `point_figures` returns, and under `intervals` the same once more with `[lowest, highest]` in place of each
        number.

    Raises:
        ValueError: If there are fewer than 2 replicates, or a label or a score is not what it should be.
    """
    if replicates < 2:
        raise ValueError(f"`replicates` must be at least 2, found {replicates}.")
    exact = point_figures(table, threshold, real_share)
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
    """Every figure of a block of replicates, by its place in the result."""
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = [
            _figures(*histogram, of_domain, edges, threshold, real_share)
            for histogram, of_domain in zip(histograms, binned, strict=True)
        ]
        real, fake = (sum(pair[label] for pair in histograms) for label in (0, 1))
        cross = _cross(histograms)
        values: dict[tuple, np.ndarray] = {
            ("m_eer",): np.max([of["m"] for of in figures], axis=0),
            ("pooled_auc",): histogram_auc(real, fake),
        }
    for i, name in enumerate(names):
        values |= {("domains", name, rate): figures[i][rate] for rate in RATES}
        values |= {("cross_auc", name, other): cross[i, j] for j, other in enumerate(names)}
    return values


def _collect(found: dict[str, dict[tuple, list]], exact: dict, coverage: float) -> dict:
    """Percentiles of the replicates, moved by the difference between the exact figure and the binned one."""
    tails = [(1 - coverage) / 2, (1 + coverage) / 2]
    intervals: dict = {"domains": {}, "m_eer": {}, "pooled_auc": {}}
    intervals |= {kind: {level: {} for level in LEVELS} for kind in ("cross_auc", "method_auc")}
    for level, figures in found.items():
        for (kind, *names), (binned, *replicates) in figures.items():
            if kind == "domains":
                of_domain = intervals["domains"].setdefault(names[0], {}).setdefault(level, {})
                target, key, value = of_domain, names[1], exact["domains"][names[0]][level][names[1]]
            elif kind in ("cross_auc", "method_auc"):
                target = intervals[kind][level].setdefault(names[0], {})
                key, value = names[1], exact[kind][level][names[0]][names[1]]
            else:
                target, key, value = intervals[kind], level, exact[kind][level]
            ends = np.quantile(np.concatenate(replicates), tails) + (value - binned[0])
            target[key] = np.clip(ends, 0, 1).tolist()
    return intervals
