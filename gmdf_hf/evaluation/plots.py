"""Plots of metrics and scores. Each function returns a matplotlib figure; `save` writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from gmdf_hf.common.errors import UserError
from gmdf_hf.evaluation.metrics import CALIBRATION_BINS, calibration_bin
from gmdf_hf.evaluation.score_table import DomainScores

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise UserError("Plots need matplotlib: pip install 'gmdf-hf[report]'") from error

REAL_COLOUR, FAKE_COLOUR = "#2a788e", "#d1495b"
STYLES = ("-", "--", "-.", ":")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _grid(count: int, width: float = 3.4, height: float = 3.1, columns: int = 4) -> tuple[Figure, list]:
    rows = -(-count // columns)
    columns = -(-count // rows)  # balanced rows: five panels are 3 + 2, not 4 + 1
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _plain(axis) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def roc_curves(domains: Mapping[str, Mapping[str, DomainScores]]) -> Figure:
    """ROC curves: one panel per domain, one line per method, with its AUC in the legend.

    Args:
        domains: Scores by domain and by method.
    """
    figure, axes = _grid(len(domains))
    for axis, (domain, methods) in zip(axes, domains.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        for number, (method, samples) in enumerate(methods.items()):
            if len(np.unique(samples.labels)) < 2:
                continue
            false_fake, found, _ = roc_curve(samples.labels, samples.scores)
            auc = 100 * roc_auc_score(samples.labels, samples.scores)
            axis.plot(false_fake, found, f"C{number}", linestyle=STYLES[number % 4], label=f"{method} {auc:.1f}")
        axis.set(title=domain, xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        if len(axis.lines) > 1:
            axis.legend(loc="lower right", fontsize=7, frameon=False, title="AUC in %", title_fontsize=7)
        _plain(axis)
    return figure


def reliability(domains: Mapping[str, DomainScores]) -> Figure:
    """Reliability diagrams: actual fraction of fakes over predicted probability, one panel per domain.

    The area of a point is proportional to its number of frames.
    """
    figure, axes = _grid(len(domains))
    for axis, (domain, samples) in zip(axes, domains.items(), strict=True):
        bins = calibration_bin(samples.scores)
        counts = np.bincount(bins, minlength=CALIBRATION_BINS)
        held = counts > 0
        predicted = np.bincount(bins, samples.scores, CALIBRATION_BINS)[held] / counts[held]
        found = np.bincount(bins, samples.labels, CALIBRATION_BINS)[held] / counts[held]
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        # No connecting line: it would emphasise bins with few frames.
        axis.scatter(predicted, found, s=4 + 400 * counts[held] / counts.sum(), color=FAKE_COLOUR, alpha=0.6)
        axis.set(title=domain, xlabel="probability of fake", ylabel="fraction of fakes", aspect="equal")
        axis.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
        _plain(axis)
    return figure


def score_histograms(domains: Mapping[str, DomainScores], threshold: float) -> Figure:
    """Score histograms of reals and fakes with the threshold, one panel per domain."""
    figure, axes = _grid(len(domains), height=2.4)
    for axis, (domain, samples) in zip(axes, domains.items(), strict=True):
        for label, name, colour in ((0, "real", REAL_COLOUR), (1, "fake", FAKE_COLOUR)):
            scores = samples.scores[samples.labels == label]
            weights = np.full(len(scores), 100 / max(len(scores), 1))
            axis.hist(scores, np.linspace(0, 1, 31), weights=weights, color=colour, alpha=0.6, label=name)
        axis.axvline(threshold, color="0.2", linewidth=1, linestyle=":", label="threshold")
        axis.set(title=domain, xlabel="probability of fake", ylabel="% of class")
        _plain(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def bars(
    rows: Sequence[str], columns: Sequence[str], means: np.ndarray, deviations: np.ndarray, paper: np.ndarray
) -> Figure:
    """One panel per column: our means with standard deviations as bars, the paper's values as diamonds.

    Args:
        rows: Labels of the methods.
        columns: Labels of the panels.
        means: Percent, shape `(rows, columns)`; `nan` for a missing value.
        deviations: Standard deviations, same shape.
        paper: Values of the paper, same shape.
    """
    figure, axes = _grid(len(columns), width=3.2, height=0.9 + 0.32 * len(rows))
    places, per_row = np.arange(len(rows))[::-1], -(-len(columns) // -(-len(columns) // 4))
    for number, axis in enumerate(axes):
        spread = np.nan_to_num(deviations[:, number])
        axis.barh(places, np.nan_to_num(means[:, number]), xerr=spread, color="#7fb3c8", height=0.6, label="ours")
        axis.axvline(50, color="0.6", linewidth=0.8, linestyle=":")  # chance level of AUC, EER and balanced ACC
        axis.plot(paper[:, number], places, "D", color="#d1495b", markersize=5, label="paper")
        axis.set_yticks(places, rows if number % per_row == 0 else [""] * len(rows), fontsize=8)
        axis.set_title(columns[number], fontsize=8)
        axis.set_xlim(0, 100)
        axis.tick_params(axis="x", labelsize=7)
        _plain(axis)
        for place, mean in zip(places, means[:, number], strict=True):
            if np.isnan(mean):
                axis.text(1, place, "not run", fontsize=6, color="0.5", verticalalignment="center")
    if np.isfinite(paper).any():
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    return figure


def lines(
    rows: Sequence[str], places: Sequence[str], means: np.ndarray, deviations: np.ndarray, name: str, title: str
) -> Figure:
    """One line per row over the settings, with standard deviations.

    Args:
        rows: Labels of the lines.
        places: Labels of the settings.
        means: Percent, shape `(rows, settings)`.
        deviations: Standard deviations, same shape.
        name: Name of the metric.
        title: Title of the plot.
    """
    figure, (axis,) = _grid(1, 5, 3.4)
    for number, row in enumerate(rows):
        spread = np.nan_to_num(deviations[number])
        axis.errorbar(range(len(places)), means[number], spread, marker="o", label=row, capsize=2)
    axis.set_xticks(range(len(places)), places)
    axis.set(ylabel=f"{name} in %", title=title)
    axis.legend(frameon=False)
    _plain(axis)
    return figure


def attention_grid(pictures: Sequence[Image.Image], titles: Sequence[str], maps: Mapping[str, np.ndarray]) -> Figure:
    """One column per image: the image, and below it the attention map of each method.

    Args:
        pictures: RGB images.
        titles: Title of each image.
        maps: Maps of each method, shape `(pictures, side, side)`; each map is scaled to its own range.
    """
    figure = Figure(figsize=(1.25 * len(pictures) + 0.6, 1.3 * (1 + len(maps)) + 0.3), layout="constrained")
    axes = figure.subplots(1 + len(maps), len(pictures), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, name in zip(axes[:, 0], ("image", *maps), strict=True):
        axis.set_ylabel(name.replace(", ", "\n"), fontsize=7)
    for column, picture in enumerate(pictures):
        axes[0][column].imshow(picture)
        axes[0][column].set_title(titles[column].replace(", ", "\n"), fontsize=7)
        for axis, of_method in zip(axes[1:, column], maps.values(), strict=True):
            whole = of_method[column] - of_method[column].min()
            heat = Image.fromarray((255 * whole / max(whole.max(), 1e-12)).astype(np.uint8))
            axis.imshow(picture.convert("L"), cmap="gray")
            axis.imshow(heat.resize(picture.size, Image.Resampling.BICUBIC), cmap="inferno", alpha=0.55)
    return figure
