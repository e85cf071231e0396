"""The paper's tables and figures as plans: which runs they need, and which figures of them to print.

A protocol has rows (methods), settings (training and test domains) and figures; every row is run in every setting with
every seed. A scale says what the domains are and what a run costs. A run's folder is named after its configuration, so
tables share their runs, and what is done is not done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from gmdf_hf.common.errors import UserError
from gmdf_hf.data.dataset import DRAWN_PREFIX
from gmdf_hf.data.distortions import DISTORTIONS, LEVELS
from gmdf_hf.training.classifiers import missing_packages
from gmdf_hf.training.config import DomainSource, TrainConfig

NO_PART_OF_A_RUN = ("seed", "output_dir", "resume", "report_to", "num_workers", "save_steps", "keep")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Strict):
    """A method: fields of `TrainConfig` over the scale's, the paper's name for it, and the scale's for its backbone."""

    label: str
    paper: str | None = None
    backbone: str | None = None
    set: dict[str, Any] = {}


class Setting(_Strict):
    """What is trained on and what is tested on besides; test splits of the training domains are always scored."""

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
    """What the domains and backbones of protocols are, and the recipe that their runs start from.

    A row whose backbone is not among `backbones` is not run; a row that names none has the recipe's. `max_settings`
    keeps a protocol's first settings only, for a trial. With `pretraining_steps` the rows that have the recipe's
    backbone start from it pre-trained, for so many steps, on the unlabelled faces of the setting's training domains
    (`scripts/pretrain_faces.py`): for machines that have no CLIP of the web.
    """

    recipe: str
    set: dict[str, Any] = {}
    domains: dict[str, Any]
    backbones: dict[str, str] = {}
    pretraining_steps: int | None = None
    replicates: int = 1000
    max_settings: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        row: Its method.
        setting: Its data.
        seed: Its seed.
        config: Its configuration; None if it cannot be run.
        refused: Why it cannot.
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
        """Whether its results are there, of just this configuration."""
        if self.config is None or not (self.config.output_dir / "results.json").exists():
            return False
        stored = yaml.safe_load((self.config.output_dir / "train_config.yaml").read_text())
        return _identity(TrainConfig(**stored)) == _identity(self.config)

    def results(self) -> dict[str, Any]:
        """What its `results.json` holds."""
        return json.loads((self.planned.output_dir / "results.json").read_text())


def read_yaml(path: Path, kind: type[BaseModel]) -> Any:
    """Read a protocol or a scale.

    Raises:
        UserError: If the file is not there or not right.
    """
    try:
        return kind(**yaml.safe_load(path.read_text()))
    except OSError as error:
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise UserError(f"There is no {path.stem!r}; there are {known}.") from error
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run, the later over the earlier; `model` is merged field by field."""
    fields: dict[str, Any] = {}
    for layer in layers:
        model = {**fields.get("model", {}), **layer.get("model", {})}
        fields = {**fields, **layer, "model": model}
    return fields


def _identity(config: TrainConfig) -> str:
    """Name of a configuration, the seed aside: what is no part of a run does not count."""
    fields = {key: value for key, value in config.model_dump(mode="json").items() if key not in NO_PART_OF_A_RUN}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def plan(protocol: Protocol, scale: Scale, recipe: Path, seeds: Sequence[int], folder: Path) -> list[Run]:
    """All runs of a protocol.

    Args:
        protocol: What to run.
        scale: On what.
        recipe: The scale's recipe file.
        seeds: Of the runs.
        folder: Of the runs' folders.

    Raises:
        UserError: If the scale lacks a domain, a domain's data are not there, or a configuration is wrong.
    """
    base = {k: v for k, v in yaml.safe_load(recipe.read_text()).items() if not k.endswith("_domains")}
    names = {name for setting in protocol.settings for name in (*setting.train, *setting.test)}
    sources = {name: domain_source(name, scale) for name in sorted(names)}
    runs = []
    for row in protocol.rows:
        refused = _without_backbone(row, scale)
        for setting in protocol.settings:
            if refused is not None:
                runs += [Run(row, setting, seed, None, refused) for seed in seeds]
                continue
            fields = _merged(base, scale.set, setting.set, row.set)
            if row.backbone is not None:
                fields["backbone"] = scale.backbones[row.backbone]
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


def _without_backbone(row: Row, scale: Scale) -> str | None:
    """Why a row's backbone cannot be had; None if it can, as far as one knows without asking the hub."""
    if row.backbone is None:
        return None
    if row.backbone not in scale.backbones:
        return f"backbone: this scale has none called {row.backbone!r}"
    name = scale.backbones[row.backbone]
    missing = " and ".join(missing_packages(name))
    return f"backbone: {name} needs {missing}, not installed here" if missing else None


def domain_source(name: str, scale: Scale) -> DomainSource:
    """Where a domain's frames are.

    Raises:
        UserError: If the scale does not know the domain, or its data are not there.
    """
    if name not in scale.domains:
        raise UserError(f"This scale has no domain {name!r}; it has {', '.join(scale.domains)}.")
    try:
        source = DomainSource.model_validate(scale.domains[name])
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"The data of domain {name!r} are not there: {reason}.") from error
    local = source.path.startswith(("/", ".", "~"))
    if local and not source.path.startswith(DRAWN_PREFIX) and not Path(source.path).exists():
        raise UserError(f"The data of domain {name!r} are not there: no file or folder {source.path}.")
    return source


def _refusal(error: ValidationError) -> str:
    """Why a run is not possible with this trainer; anything else is a mistake in the protocol.

    Raises:
        UserError: If it is.
    """
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"] == ("method",) or "at least two source domains" in message:
        return f"{'method: ' if first['loc'] else ''}{message[0].lower()}{message[1:]}"
    raise UserError(f"{'.'.join(map(str, first['loc']))}: {message}.") from error


def distortions_of(figure: Figure) -> list[str]:
    """The distorted evaluations that a figure is the mean of, as `kind:level`; none for a clean figure."""
    if figure.distortion is None:
        return []
    kinds = DISTORTIONS if figure.distortion == "all" else [figure.distortion]
    return [f"{kind}:{level}" for kind in kinds for level in range(1, LEVELS + 1)]


def value_of(figure: Figure, setting: Setting, domains: Mapping[str, Any]) -> float:
    """A figure of one evaluation.

    Args:
        figure: Which.
        setting: Whose test domains count where the figure names none; all that were scored if it has none.
        domains: `domains` of a `results.json`.

    Returns:
        A share; `nan` where it has no value, as of a domain of which no image could be read.
    """
    names = [figure.domain] if figure.domain else list(setting.test or domains)
    name = "m" if figure.figure == "m_eer" else figure.figure
    values = [domains[domain][figure.level][name] if domain in domains else None for domain in names]
    shares = np.array([np.nan if value is None else value for value in values], dtype=float)
    return float(shares.max() if figure.figure == "m_eer" else shares.mean())
