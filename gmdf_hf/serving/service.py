"""HTTP service: scores of pictures and videos, jobs for long videos, health, metrics."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, HTTPException, Request, Response, Security, UploadFile
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest

from gmdf_hf import __version__
from gmdf_hf.common.schema import SCHEMA_VERSION
from gmdf_hf.evaluation.training_data import describe_training
from gmdf_hf.serving.answers import JobState, ModelFacts, Prediction, Settings
from gmdf_hf.serving.download import DownloadError, downloaded
from gmdf_hf.serving.engine import SUFFIXES, Engine
from gmdf_hf.serving.gate import RETRY_SECONDS, Gate
from gmdf_hf.serving.inputs import is_url
from gmdf_hf.serving.job_worker import JobWorker
from gmdf_hf.serving.jobs import Job, JobStore
from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline
from gmdf_hf.serving.service_metrics import Figures, log

CHUNK = 2**20
NAME_LENGTH = 200
# A file may be absent, but its type is not `UploadFile | None`: clients generated from that schema send a text.
BINARY = File(description="A picture or video", json_schema_extra={"format": "binary"})
KEY = [Security(HTTPBearer(auto_error=False, description="API key"))]  # for the description; `Gate` checks the key


def build(detect: DeepfakeDetectionPipeline, settings: Settings) -> FastAPI:
    """Build the service.

    Args:
        detect: The pipeline `deepfake-detection`.
        settings: Bounds of the service.
    """
    figures = Figures()
    trained_on = describe_training(detect.model.config)
    state: dict[str, Any] = {"open": False}

    def complete(result: dict[str, Any]) -> dict[str, Any]:
        about = {"training_data": trained_on, "model": settings.model, "schema_version": SCHEMA_VERSION}
        return result | about

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = Engine(detect, on_batch=figures.batch)
        job_engine = Engine(detect, settings.job_seconds, figures.batch, share=engine)
        store = JobStore(settings.jobs)
        worker = JobWorker(store, job_engine, settings, complete)
        pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="score")
        worker.start()
        state.update(open=True, engine=engine, store=store, pool=pool)
        log("started", model=settings.model, version=__version__)
        yield
        state["open"] = False
        worker.is_stopping.set()
        await asyncio.to_thread(worker.join, 60)
        await asyncio.to_thread(pool.shutdown)
        for part in (job_engine, engine, store):
            part.close()
        log("stopped")

    app = FastAPI(title="gmdf", version=__version__, lifespan=lifespan, summary="Scores of faces: real or fake?")
    refused: dict[int | str, dict[str, Any]] = {
        401: {"description": "No valid API key"},
        413: {"description": "File too large"},
        415: {"description": "Neither picture nor video"},
        422: {"description": "The file cannot be read"},
        503: {"description": "All places are taken: come back after Retry-After seconds"},
    }

    @app.post("/v1/predict", dependencies=KEY, responses=refused, operation_id="predict")
    async def predict(
        file: Annotated[UploadFile, BINARY] = None,  # type: ignore[assignment]  # see BINARY
        url: Annotated[str | None, Form(description="Or its address", max_length=2000)] = None,
    ) -> Prediction:
        """Score a picture or a video."""
        _check_source(file, url)
        loop = asyncio.get_running_loop()
        with _stored(file) as path:
            work = partial(_score, state["engine"], path, url, settings.frames, _name_of(file, url))
            try:
                result = await loop.run_in_executor(state["pool"], work)
            except DownloadError as error:
                raise HTTPException(422, str(error)) from error
        if result["error"] is not None:
            raise HTTPException(422, result["error"])
        return Prediction(**complete(result))

    @app.post("/v1/jobs", dependencies=KEY, status_code=202, responses=refused, operation_id="create_job")
    async def create_job(
        request: Request,
        file: Annotated[UploadFile, BINARY] = None,  # type: ignore[assignment]  # see BINARY
        url: Annotated[str | None, Form(description="Or its address", max_length=2000)] = None,
    ) -> JobState:
        """Score a long video later: more frames, more time."""
        _check_source(file, url)
        store: JobStore = state["store"]
        if store.waiting() >= settings.max_jobs:
            raise HTTPException(503, "All places for jobs are taken.", {"Retry-After": str(30 * RETRY_SECONDS)})
        with _stored(file) as path:
            add = partial(store.add, request.state.owner, _name_of(file, url), path, url or None)
            return _shown(await asyncio.to_thread(add))

    @app.get(
        "/v1/jobs/{key}", dependencies=KEY, responses={404: {"description": "No such job"}}, operation_id="get_job"
    )
    def get_job(key: str, request: Request) -> JobState:
        """State of a job, with its result when it is done; kept for a day."""
        return _shown(state["store"].get(key, request.state.owner))

    @app.delete(
        "/v1/jobs/{key}", dependencies=KEY, responses={404: {"description": "No such job"}}, operation_id="cancel_job"
    )
    def cancel_job(key: str, request: Request) -> JobState:
        """Cancel a job that has not ended."""
        return _shown(state["store"].cancel(key, request.state.owner))

    @app.get("/v1/model", dependencies=KEY, operation_id="get_model")
    def get_model() -> ModelFacts:
        """Which model decides, what it was trained on, and at which operating point."""
        point = detect.operating_point
        return ModelFacts(
            model=settings.model,
            training_data=trained_on,
            operating_point=None if point is None else point.describe(),
            threshold=detect.default_threshold,
            version=__version__,
        )

    @app.get("/health", operation_id="health")
    def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @app.get("/ready", responses={503: {"description": "Starting or stopping"}}, operation_id="ready")
    def ready() -> dict[str, str]:
        """Whether requests are taken."""
        if not state["open"]:
            raise HTTPException(503, "Starting or stopping.")
        return {"status": "ready"}

    @app.get("/metrics", operation_id="metrics", response_class=Response)
    def metrics() -> Response:
        """Metrics in the format of Prometheus."""
        for status, number in state["store"].counts().items():
            figures.jobs.labels(status).set(number)
        figures.waiting.set(gate[0].waiting if gate else 0)
        return Response(generate_latest(figures.registry), media_type="text/plain; version=0.0.4")

    gate: list[Gate] = []

    def on_answer(route: str, status: int, seconds: float) -> None:
        figures.answers.labels(route, status).inc()
        figures.seconds.labels(route).observe(seconds)
        log("answer", request=secrets.token_hex(4), route=route, status=status, seconds=round(seconds, 3))

    class _Gate(Gate):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner, settings.keys, settings.max_waiting, lambda: state["open"], on_answer)
            gate.append(self)

    app.add_middleware(_Gate)
    return app


def keys_of(environment: str | None) -> tuple[str, ...]:
    """API keys of an environment variable, separated by commas or white space."""
    return tuple(dict.fromkeys((environment or "").replace(",", " ").split()))


def _score(engine: Engine, path: Path | None, url: str | None, frames: int, name: str) -> dict[str, Any]:
    if path is not None:
        return engine.score(path, name, frames)
    with downloaded(url or "") as fetched:
        return engine.score(fetched, name, frames)


def _check_source(file: UploadFile | None, url: str | None) -> None:
    if (file is None) == (not url):
        raise HTTPException(422, "Give a file or an address (url), one of them.")
    if url and not is_url(url):
        raise HTTPException(422, "An address begins with https:// or http://.")
    suffix = Path(file.filename or "").suffix.lower() if file is not None else ""
    if file is not None and suffix not in SUFFIXES:
        raise HTTPException(
            415, f"Files of the type {suffix[:20] or 'unknown'} are not read, only pictures and videos."
        )


def _name_of(file: UploadFile | None, url: str | None) -> str:
    return Path(file.filename or "").name[-NAME_LENGTH:] if file is not None else str(url)


@contextmanager
def _stored(file: UploadFile | None) -> Iterator[Path | None]:
    """Copy an upload to a file with its suffix, deleted after the block; None for an address."""
    if file is None:
        yield None
        return
    descriptor, name = tempfile.mkstemp(suffix=Path(file.filename or "").suffix.lower(), prefix="gmdf-")
    try:
        with os.fdopen(descriptor, "wb") as copy:
            while chunk := file.file.read(CHUNK):
                copy.write(chunk)
        yield Path(name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def _shown(job: Job | None) -> JobState:
    if job is None:
        raise HTTPException(404, "There is no such job.")
    fields = {name: value for name, value in asdict(job).items() if name in JobState.model_fields}
    if job.status != "done":
        fields["result"] = None
    return JobState(**fields)


def serve(detect: DeepfakeDetectionPipeline, settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; requests in work are finished, jobs are continued at the next start."""
    import uvicorn

    app = build(detect, settings)
    # Connections are kept longer than clients wait for another try: a reused one must not close at that moment.
    uvicorn.run(
        app,
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=60,
        timeout_keep_alive=65,
    )
