"""Protocols: the runs and metrics of the paper's tables and figures.

A protocol has rows (methods), settings (training and test domains) and metrics; every row runs in every setting with
every seed. A scale defines the domains and the budget of a run. The folder of a run is named after its configuration,
so tables share finished runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from gmdf_hf.common.errors import UserError
from gmdf_hf.data.distortions import DISTORTIONS, LEVELS
from gmdf_hf.data.drawn.domains import DRAWN_PREFIX
from gmdf_hf.modeling import GMDFConfig
from gmdf_hf.training.classifiers import missing_packages
from gmdf_hf.training.config import DomainSource, TrainConfig

NO_PART_OF_A_RUN = ("seed", "output_dir", "resume", "report_to", "num_workers", "save_steps", "keep")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Strict):
    """A method: overrides of `TrainConfig`, its name in the paper, and the scale's name of its backbone.

    A row with `missing` is not run; this is the reason.
    """

    label: str
    paper: str | None = None
    backbone: str | None = None
    missing: str | None = None
    set: dict[str, Any] = {}


class Setting(_Strict):
    """Training domains and further test domains; test splits of the training domains are always scored."""

    label: str
    train: tuple[str, ...]
    test: tuple[str, ...] = ()
    set: dict[str, Any] = {}


class Figure(_Strict):
    """A figure of a run's test scores: of one domain, or over the setting's test domains (mean; `m_eer`: the worst)."""

    label: str
    figure: Literal["auc", "acc", "eer", "ap", "m", "m_eer"]
    domain: str | None = None
    level: Literal["frame", "video"] = "frame"
    distortion: Literal["compress", "blur", "contrast", "saturate", "pixelate", "all"] | None = None


class Protocol(_Strict):
    """A table or figure; `compare` is the row that the other rows' AUC is compared with, with intervals."""

    title: str
    paper: str | None = None
    rows: tuple[Row, ...]
    settings: tuple[Setting, ...]
    figures: tuple[Figure, ...]
    plot: Literal["bars", "lines", "roc", "attention"] = "bars"
    compare: str | None = None


class Scale(_Strict):
    """Domains, backbones and base recipe of the runs.

    A row whose backbone is not in `backbones` is not run; its value is a name or folder, or fields of a run. A row
    without a backbone uses the recipe's. `max_settings` keeps only the first settings of a protocol, for a trial. With
    `pretraining_steps`, the recipe's backbone is first pre-trained for that many steps on the unlabelled faces of the
    setting's training domains (`scripts/pretrain_faces.py`), for machines without a web-trained CLIP.
    """

    recipe: str
    set: dict[str, Any] = {}
    domains: dict[str, Any]
    backbones: dict[str, str | dict[str, Any]] = {}
    pretraining_steps: int | None = None
    replicates: int = 1000
    max_settings: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        row: Method.
        setting: Data.
        seed: Seed.
        config: Configuration; None if the run is impossible.
        refused: Reason if the run is impossible.
    """

    row: Row
    setting: Setting
    seed: int
    config: TrainConfig | None
    refused: str | None = None

    @property
    def planned(self) -> TrainConfig:
        """Configuration of a run that is not refused.

        Raises:
            ValueError: If the run is refused.
        """
        if self.config is None:
            raise ValueError(f"The run {self.row.label!r}, {self.setting.label!r} is refused: {self.refused}")
        return self.config

    @property
    def done(self) -> bool:
        """Whether results of exactly this configuration exist."""
        if self.config is None or not (self.config.output_dir / "results.json").exists():
            return False
        stored = yaml.safe_load((self.config.output_dir / "train_config.yaml").read_text())
        return _identity(TrainConfig(**stored)) == _identity(self.config)

    def results(self) -> dict[str, Any]:
        """Content of its `results.json`."""
        return json.loads((self.planned.output_dir / "results.json").read_text())


def read_yaml(path: Path, kind: type[BaseModel]) -> Any:
    """Read a protocol or a scale.

    Raises:
        UserError: If the file is missing or invalid.
    """
    try:
        return kind(**yaml.safe_load(path.read_text()))
    except OSError as error:
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise UserError(f"Unknown name {path.stem!r}, expected one of {known}.") from error
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run; later layers override earlier ones, and `model` is merged field by field.

    Fields of the model that have their default are left out, so that a row which names one shares the run of one which
    does not.
    """
    fields: dict[str, Any] = {}
    for layer in layers:
        model = {**fields.get("model", {}), **layer.get("model", {})}
        fields = {**fields, **layer, "model": model}
    model = {name: value for name, value in fields["model"].items() if value != getattr(GMDFConfig, name, None)}
    return fields | {"model": model}


def _identity(config: TrainConfig) -> str:
    """Hash of a configuration without the seed and the fields in `NO_PART_OF_A_RUN`."""
    fields = {key: value for key, value in config.model_dump(mode="json").items() if key not in NO_PART_OF_A_RUN}
    for name in ("detector", "lora", "self_blended"):  # as in runs from before these fields
        if not fields[name]:
            del fields[name]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def plan(protocol: Protocol, scale: Scale, recipe: Path, seeds: Sequence[int], folder: Path) -> list[Run]:
    """All runs of a protocol.

    Args:
        protocol: Rows, settings and metrics.
        scale: Domains and budget.
        recipe: Recipe file of the scale.
        seeds: Seeds of the runs.
        folder: Parent of the run folders.

    Raises:
        UserError: If the scale lacks a domain, a domain's data are missing, or a configuration is invalid.
    """
    base = {k: v for k, v in yaml.safe_load(recipe.read_text()).items() if not k.endswith("_domains")}
    names = {name for setting in protocol.settings for name in (*setting.train, *setting.test)}
    sources = {name: domain_source(name, scale) for name in sorted(names)}
    runs = []
    for row in protocol.rows:
        refused = f"not implemented: {row.missing}" if row.missing else _unavailable(row, scale)
        for setting in protocol.settings:
            if refused is not None:
                runs += [Run(row, setting, seed, None, refused) for seed in seeds]
                continue
            fields = _merged(base, scale.set, setting.set, row.set)
            if row.backbone is not None:
                fields |= _fields_of(scale.backbones[row.backbone])
            elif scale.pretraining_steps is not None:
                backbone = f"{'+'.join(setting.train)}-{scale.pretraining_steps}"
                fields["backbone"] = str(folder.parent / "backbones" / backbone)
            fields["source_domains"] = {name: sources[name] for name in setting.train}
            fields["unseen_domains"] = {name: sources[name] for name in setting.test if name not in setting.train}
            try:
                config = TrainConfig(**fields)
            except ValidationError as error:
                runs += [Run(row, setting, seed, None, _refusal(error)) for seed in seeds]
                continue
            place = folder / _identity(config)
            runs += [
                Run(row, setting, seed, config.model_copy(update={"seed": seed, "output_dir": place / f"seed{seed}"}))
                for seed in seeds
            ]
    return runs


def _unavailable(row: Row, scale: Scale) -> str | None:
    """Reason why a row's method or backbone is unavailable; None if available (the hub is not checked)."""
    if row.set.get("method") == "lora" and find_spec("peft") is None:
        return "method: lora needs peft, not installed here"
    if row.backbone is None:
        return None
    if row.backbone not in scale.backbones:
        return f"backbone: this scale has none called {row.backbone!r}"
    name = _fields_of(scale.backbones[row.backbone])["backbone"]
    missing = " and ".join(missing_packages(name))
    return f"backbone: {name} needs {missing}, not installed here" if missing else None


def _fields_of(backbone: str | dict[str, Any]) -> dict[str, Any]:
    """Fields of a run from a scale's backbone."""
    return {"backbone": backbone} if isinstance(backbone, str) else backbone


def domain_source(name: str, scale: Scale) -> DomainSource:
    """Source of a domain's frames.

    Raises:
        UserError: If the scale has no such domain, or its data are missing.
    """
    if name not in scale.domains:
        raise UserError(f"This scale has no domain {name!r}; it has {', '.join(scale.domains)}.")
    try:
        source = DomainSource.model_validate(scale.domains[name])
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"The data of domain {name!r} are missing: {reason}.") from error
    local = source.path.startswith(("/", ".", "~"))
    if local and not source.path.startswith(DRAWN_PREFIX) and not Path(source.path).exists():
        raise UserError(f"The data of domain {name!r} are missing: no file or folder {source.path}.")
    return source


def _refusal(error: ValidationError) -> str:
    """Reason why this trainer cannot do a run.

    Raises:
        UserError: If the error is a mistake in the protocol.
    """
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"] == ("method",) or "at least two source domains" in message:
        return f"{'method: ' if first['loc'] else ''}{message[0].lower()}{message[1:]}"
    raise UserError(f"{'.'.join(map(str, first['loc']))}: {message}.") from error


def distortions_of(figure: Figure) -> list[str]:
    """Distorted evaluations that a metric averages, as `kind:level`; empty for a clean one."""
    if figure.distortion is None:
        return []
    kinds = DISTORTIONS if figure.distortion == "all" else [figure.distortion]
    return [f"{kind}:{level}" for kind in kinds for level in range(1, LEVELS + 1)]


def value_of(figure: Figure, setting: Setting, domains: Mapping[str, Any]) -> float:
    """Value of a metric in one evaluation.

    Args:
        figure: The metric.
        setting: Its test domains are used if the metric names none; all scored domains if it has none.
        domains: `domains` of a `results.json`.

    Returns:
        A fraction; `nan` if undefined, for example for a domain without readable images.
    """
    names = [figure.domain] if figure.domain else list(setting.test or domains)
    name = "m" if figure.figure == "m_eer" else figure.figure
    values = [domains[domain][figure.level][name] if domain in domains else None for domain in names]
    shares = np.array([np.nan if value is None else value for value in values], dtype=float)
    return float(shares.max() if figure.figure == "m_eer" else shares.mean())
