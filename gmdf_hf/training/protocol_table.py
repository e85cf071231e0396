"""Table of a protocol: measured values and those of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gmdf_hf.evaluation.tables import percent
from gmdf_hf.training.protocol import Protocol, Run

PAPER_RESULTS = Path(str(files("gmdf_hf.training") / "paper_results.yaml"))


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        row: Label of the row.
        column: `<setting>: <figure>`.
        values: One fraction per seed.
        paper: Value of the paper in percent.
    """

    row: str
    column: str
    values: tuple[float, ...]
    paper: float | None

    @property
    def mean(self) -> float:
        """Mean over seeds, in percent."""
        return 100 * float(np.mean(self.values)) if self.values else float("nan")

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds, in percent; `nan` for fewer than two."""
        return 100 * float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")

    def __str__(self) -> str:
        text = "-" if np.isnan(self.mean) else f"{self.mean:.2f}"
        text += "" if np.isnan(self.deviation) else f" ± {self.deviation:.2f}"
        return text if self.paper is None else f"{text} ({self.paper:.2f})"


def paper_results(name: str | None) -> dict[str, Any]:
    """One table of the paper as `title`, `columns` and `rows`; empty if the paper prints no values."""
    return yaml.safe_load(PAPER_RESULTS.read_text())[name] if name else {"columns": [], "rows": {}}


def columns_of(protocol: Protocol) -> list[str]:
    """Column labels `<setting>: <figure>`, in order."""
    return [f"{setting.label}: {figure.label}" for setting in protocol.settings for figure in protocol.figures]


def table_of(protocol: Protocol, cells: Mapping[tuple[str, str], Cell]) -> list[list[str]]:
    """Header, our rows with the paper's value in brackets, then the paper's rows of other methods."""
    columns, paper = columns_of(protocol), paper_results(protocol.paper)
    rows = [["", *columns]]
    rows += [[row.label, *(str(cells[row.label, column]) for column in columns)] for row in protocol.rows]
    for name in paper["rows"].keys() - {row.paper for row in protocol.rows}:
        printed = dict(zip(paper["columns"], paper["rows"][name], strict=True))
        values = [printed.get(column) for column in columns]
        rows.append([f"{name}, paper", *("-" if value is None else f"({value:.2f})" for value in values)])
    return rows[: 1 + len(protocol.rows)] + sorted(rows[1 + len(protocol.rows) :])


def budgets(protocol: Protocol, runs: Sequence[Run]) -> list[list[str]]:
    """Budget and source-domain validation results of each method, the only basis for choosing a method."""
    rows = [["", "steps", "images", "seconds", "validation AUC"]]
    for row in protocol.rows:
        results = [run.results() for run in runs if run.row == row and run.config is not None]
        if results:
            keys = ("steps", "images", "train_seconds", "validation_auc")
            *costs, auc = (float(np.mean([of_run[key] for of_run in results])) for key in keys)
            rows.append([row.label, *(f"{cost:.0f}" for cost in costs), percent(auc)])
    return rows
