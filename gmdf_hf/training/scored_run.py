"""A run or an evaluation as it lies on disk: scores, results, and the pictures behind them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from gmdf_hf.data.dataset import Domain, load_domain
from gmdf_hf.evaluation.coverage import scored_rows
from gmdf_hf.evaluation.intervals import measure
from gmdf_hf.evaluation.score_table import DomainScores, read_scores, split_domains
from gmdf_hf.training.config import DomainSource, TrainConfig


@dataclass(frozen=True)
class Scored:
    """A run of meta_train.py or evaluate.py.

    Attributes:
        label: Name in the report.
        folder: Folder of the run.
        replicates: Number of bootstrap replicates for the intervals.
    """

    label: str
    folder: Path
    replicates: int = 1000

    @cached_property
    def table(self) -> pd.DataFrame:
        """Table of scores, with the rows of videos without one."""
        return read_scores(self.folder / "scores.parquet")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Rows with a score."""
        return scored_rows(self.table)

    @property
    def has_pictures(self) -> bool:
        """Whether the pictures behind the scores are known."""
        return any((self.folder / name).exists() for name in ("request.json", "train_config.yaml"))

    @cached_property
    def results(self) -> dict[str, Any]:
        """Content of `results.json`, with intervals."""
        results = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        return results | measure(self.table, results["threshold"], replicates=self.replicates)

    @cached_property
    def domains(self) -> dict[str, DomainScores]:
        """Scores by domain."""
        return split_domains(self.scores)

    @property
    def model(self) -> str:
        """Folder or hub id of the model."""
        return self.results.get("model", str(self.folder / "model"))

    def load_domain(self, name: str) -> Domain:
        """The pictures behind the scores of a domain."""
        if (self.folder / "request.json").exists():
            source = DomainSource(
                **json.loads((self.folder / "request.json").read_text(encoding="utf-8"))["domains"][name]
            )
        else:
            config = TrainConfig(**yaml.safe_load((self.folder / "train_config.yaml").read_text(encoding="utf-8")))
            source = {**config.source_domains, **config.unseen_domains}[name]
        return load_domain(name, self.results.get("split", "test"), **source.model_dump())
