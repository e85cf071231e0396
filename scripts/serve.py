"""Serve a detector over HTTP: POST a picture, a video or an address, get scores as JSON.

GMDF_API_KEYS=secret gmdf serve --model user/name --host 0.0.0.0
curl -F file=@photo.jpg -H 'Authorization: Bearer secret' localhost:8000/v1/predict

/docs is the OpenAPI page, /v1/jobs takes long videos, /metrics is for Prometheus. Files are decoded in child processes.
Requests beyond --max_waiting get 503 with Retry-After. SIGTERM finishes the requests in work. For more machines start
several behind a load balancer; each keeps its own jobs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from gmdf_hf.common.errors import UserError, exit_on_error
from gmdf_hf.common.options import parse_options
from gmdf_hf.serving.loading import RuntimeOptions, load_pipeline

KEYS = "GMDF_API_KEYS"


class ServeOptions(RuntimeOptions):
    """Which detector to serve, where, and its bounds."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    without_keys: bool = Field(False, description=f"Let everyone in on a public --host, without {KEYS}.")
    jobs: Path = Field(Path("gmdf-jobs"), description="Folder of the jobs, of this service only.")
    workers: int = Field(4, ge=1, description="Files in work at the same time.")
    max_waiting: int = Field(32, ge=1, description="Requests in work or waiting; more are told to come back.")
    max_jobs: int = Field(100, ge=1, description="Jobs that have not ended; more are told to come back.")
    frames: int = Field(16, ge=1, description="Frames of a video in a request.")
    job_frames: int = Field(256, ge=1, description="Frames of a video in a job.")
    detector: Literal["yunet", "retinaface", "haar", "none"] = Field(
        "yunet", description="Face detector; none: files are crops of one face."
    )
    detector_weights: str | None = Field(None, description="Local weights of the face detector.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps (default: the first accelerator).")


def main(options: ServeOptions) -> None:
    """Serve until the process is told to stop.

    Raises:
        UserError: If the model cannot be used, a package is missing, or a public address has no keys.
    """
    try:
        from gmdf_hf.serving.answers import Settings
        from gmdf_hf.serving.service import keys_of, serve
    except ImportError as error:
        raise UserError(f"The service needs the package {error.name}: pip install 'gmdf-hf[serve]'.") from error
    keys = keys_of(os.environ.get(KEYS))
    if not keys and not options.without_keys and options.host not in ("127.0.0.1", "localhost", "::1"):
        raise UserError(
            f"--host {options.host} can be reached from outside, and {KEYS} is not set.",
            f"Set {KEYS} to one or more keys, separated by commas, or pass --without_keys.",
        )
    detect = load_pipeline(
        options.model,
        options.detector,
        options.detector_weights,
        device=options.device,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        fake_label=options.fake_label,
        operating_point=options.operating_point,
        dtype=options.dtype,
        runtime=options.runtime,
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("gmdf").setLevel(logging.INFO)
    settings = Settings(
        model=Path(options.model).name if os.path.isdir(options.model) else options.model,
        jobs=options.jobs,
        keys=keys,
        workers=options.workers,
        max_waiting=options.max_waiting,
        max_jobs=options.max_jobs,
        frames=options.frames,
        job_frames=options.job_frames,
    )
    serve(detect, settings, options.host, options.port)


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Serve with the options of the command line."""
    options = parse_options(ServeOptions, arguments, __doc__, program)
    with exit_on_error(program or "serve.py"):
        main(options)


if __name__ == "__main__":
    run()
