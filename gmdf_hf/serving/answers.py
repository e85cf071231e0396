"""Answers of the service, for its OpenAPI page, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Prediction(BaseModel):
    """Result of one picture or video; further fields are those of the pipeline."""

    model_config = ConfigDict(extra="allow")

    source: str
    label: Literal["real", "uncertain", "fake"] | None
    score: float | None
    probability: float | None
    threshold: float
    uncertain_from: float | None
    face_found: bool
    frames_read: int
    persons: list[dict[str, Any]]
    faces: list[dict[str, Any]]
    notes: list[str]
    training_data: str
    model: str
    schema_version: int


class JobState(BaseModel):
    """A job and, when it is done, its result."""

    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled", "lost"]
    created: float
    updated: float
    result: Prediction | None = None
    error: str | None = None


class ModelFacts(BaseModel):
    """What the service decides with."""

    model: str
    training_data: str
    operating_point: str | None
    threshold: float
    version: str


@dataclass(frozen=True)
class Settings:
    """Bounds of the service.

    Attributes:
        model: Name of the model in answers.
        jobs: Folder of the jobs.
        keys: API keys; empty to let everyone in.
        workers: Files in work at the same time.
        max_waiting: Requests in work or waiting; more are told to come back.
        max_jobs: Jobs that have not ended; more are told to come back.
        frames: Frames of a video in a request.
        job_frames: Frames of a video in a job.
        job_seconds: Maximum processor time for the frames of a job's file.
    """

    model: str
    jobs: Path
    keys: tuple[str, ...] = ()
    workers: int = 4
    max_waiting: int = 32
    max_jobs: int = 100
    frames: int = 16
    job_frames: int = 256
    job_seconds: float = 300.0
