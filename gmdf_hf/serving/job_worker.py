"""Thread that runs the jobs of the service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gmdf_hf.serving.answers import Settings
from gmdf_hf.serving.download import DownloadError, downloaded
from gmdf_hf.serving.engine import Cancelled, Engine
from gmdf_hf.serving.jobs import Job, JobStore
from gmdf_hf.serving.service_metrics import log


class JobWorker(threading.Thread):
    """Runs the jobs, one at a time."""

    def __init__(self, store: JobStore, engine: Engine, settings: Settings, complete: Callable[..., dict[str, Any]]):
        super().__init__(name="jobs", daemon=True)
        self.store, self.engine, self.settings, self.complete = store, engine, settings, complete
        self.is_stopping = threading.Event()

    def run(self) -> None:
        """Take jobs until the service stops."""
        while not self.is_stopping.is_set():
            job = self.store.start_next()
            if job is None:
                self.store.forget_old()
                self.is_stopping.wait(0.2)
                continue
            started = time.monotonic()
            try:
                with self._file(job) as path:
                    stop = partial(self._is_unwanted, job)
                    result = self.engine.score(path, job.name, self.settings.job_frames, stop)
                self.store.finish(job.id, self.complete(result))
            except Cancelled:
                self.store.put_back(job.id)  # has no effect on a cancelled job
            except DownloadError as error:
                self.store.fail(job.id, str(error))
            except Exception as error:  # the next job must run
                self.store.fail(job.id, f"Internal error ({type(error).__name__}).")
            log("job", job=job.id, seconds=round(time.monotonic() - started, 3))

    def _is_unwanted(self, job: Job) -> bool:
        return self.is_stopping.is_set() or self.store.is_cancelled(job.id)

    @contextmanager
    def _file(self, job: Job) -> Iterator[Path]:
        if job.url is None:
            yield self.store.upload_of(job)
        else:
            with downloaded(job.url) as path:
                yield path
