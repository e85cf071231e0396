"""Source of a domain's frames in a recipe."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class DomainSource(BaseModel):
    """Where a domain's frames come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(description="Hub id, local folder or Parquet file, or `drawn:<domain>`.")
    subset: str | None = Field(None, description="Configuration of the hub data set.")
    revision: str | None = Field(None, description="Commit, branch or tag of the hub data set.")
    columns: dict[str, str | None] = Field(
        {},
        description="Our column name to the data set's; null where a column of that name means something else there.",
    )
    splits: dict[str, str] = Field({}, description="Our split name (train, validation, test) to the data set's.")
    max_videos: int | None = Field(None, ge=1, description="Read at most so many videos of each class and split.")
    labels: dict[str, Literal["real", "fake"]] = Field(
        {}, description="`real` or `fake` for the data set's own class names that do not say it: `{ai_art: fake}`."
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_a_bare_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("labels", mode="before")
    @classmethod
    def _names_are_texts(cls, labels: Any) -> Any:
        return {str(name): label for name, label in labels.items()} if isinstance(labels, dict) else labels

    @field_validator("path")
    @classmethod
    def _expand(cls, path: str) -> str:
        expanded = os.path.expanduser(os.path.expandvars(path))
        if unset := re.search(r"\$\{?(\w+)", expanded):
            raise ValueError(f"the path {path!r} needs the environment variable {unset[1]}, which is not set")
        return expanded


def recipe_domains(recipe: Path) -> dict[str, Any]:
    """Source and unseen domains of a recipe.

    Raises:
        ValueError: If the file cannot be read.
    """
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}
        return {**content.get("source_domains", {}), **content.get("unseen_domains", {})}
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise ValueError(f"the recipe {recipe} cannot be read: {' '.join(str(error).split())}") from error
