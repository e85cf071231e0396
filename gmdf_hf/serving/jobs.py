"""Jobs of the service: long videos, kept in a folder so that a crash loses none unsaid.

A job is `queued`, `running`, then `done`, `failed`, `cancelled` or `lost`. After a crash, queued jobs are still queued;
a job that was running is tried again once, and is `lost` if the service ended again while it ran.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_ATTEMPTS = 2
KEEP_SECONDS = 24 * 3600.0  # for finished jobs
OPEN = ("queued", "running")
TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL, name TEXT NOT NULL,
    url TEXT, created REAL NOT NULL, updated REAL NOT NULL, result TEXT, error TEXT
)
"""


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        id: Random name.
        owner: Digest of the API key that created it.
        status: See the module.
        attempts: Number of starts.
        name: Name of the file.
        url: Address of the file; None for an upload.
        created: Time of creation, seconds since 1970.
        updated: Time of the last change.
        result: Result of the pipeline, if it is done.
        error: Reason, if it failed or is lost.
    """

    id: str
    owner: str
    status: str
    attempts: int
    name: str
    url: str | None
    created: float
    updated: float
    result: dict[str, Any] | None
    error: str | None


class JobStore:
    """Jobs in a SQLite file, their uploads beside it.

    Args:
        folder: Folder for both, of one service only.
    """

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._base = sqlite3.connect(folder / "jobs.sqlite3", check_same_thread=False, isolation_level=None)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=FULL")  # an accepted job survives a power cut
        self._base.execute(TABLE)
        self._recover()

    def add(self, owner: str, name: str, upload: Path | None, url: str | None) -> Job:
        """Store a job; its upload is copied first."""
        key, now = secrets.token_urlsafe(16), time.time()
        if upload is not None:
            shutil.copyfile(upload, self._place(key, name))
        job = Job(key, owner, "queued", 0, name, url, now, now, None, None)
        self._run(
            "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)", key, owner, "queued", 0, name, url, now, now
        )
        return job

    def get(self, key: str, owner: str) -> Job | None:
        """The owner's job of this id."""
        return self._one("SELECT * FROM jobs WHERE id = ? AND owner = ?", key, owner)

    def counts(self) -> dict[str, int]:
        """Number of jobs by status."""
        return dict(self._run("SELECT status, COUNT(*) FROM jobs GROUP BY status"))

    def waiting(self) -> int:
        """Number of jobs that are not ended."""
        return sum(number for status, number in self.counts().items() if status in OPEN)

    def start_next(self) -> Job | None:
        """Mark the oldest queued job as running, and return it."""
        with self._lock:
            row = self._base.execute("SELECT id FROM jobs WHERE status = 'queued' ORDER BY created LIMIT 1").fetchone()
            if row is None:
                return None
            change = "UPDATE jobs SET status = 'running', attempts = attempts + 1, updated = ? WHERE id = ?"
            self._base.execute(change, (time.time(), row[0]))
        return self._one("SELECT * FROM jobs WHERE id = ?", row[0])

    def finish(self, key: str, result: dict[str, Any]) -> None:
        """Store the result of a running job; a cancelled one stays cancelled."""
        error = result.get("error")
        status = "failed" if error is not None else "done"
        change = "UPDATE jobs SET status = ?, result = ?, error = ?, updated = ? WHERE id = ? AND status = 'running'"
        self._run(change, status, json.dumps(result), error, time.time(), key)
        self._delete_upload(key)

    def fail(self, key: str, error: str) -> None:
        """End a running job without a result."""
        self._end(key, "failed", error)

    def put_back(self, key: str) -> None:
        """Queue a running job again, because the service stops; this is no failed attempt."""
        change = "UPDATE jobs SET status = 'queued', attempts = attempts - 1, updated = ? WHERE id = ?"
        self._run(f"{change} AND status = 'running'", time.time(), key)

    def cancel(self, key: str, owner: str) -> Job | None:
        """Cancel the owner's job if it has not ended; its result is thrown away."""
        change = "UPDATE jobs SET status = 'cancelled', updated = ? WHERE id = ? AND owner = ?"
        self._run(f"{change} AND status IN ('queued', 'running')", time.time(), key, owner)
        job = self.get(key, owner)
        if job is not None and job.status == "cancelled":
            self._delete_upload(key)
        return job

    def is_cancelled(self, key: str) -> bool:
        """Whether a job is cancelled."""
        return self._run("SELECT status FROM jobs WHERE id = ?", key) == [("cancelled",)]

    def upload_of(self, job: Job) -> Path:
        """The uploaded file of a job."""
        return self._place(job.id, job.name)

    def forget_old(self) -> None:
        """Delete jobs that ended long ago."""
        old = "DELETE FROM jobs WHERE status NOT IN ('queued', 'running') AND updated < ?"
        self._run(old, time.time() - KEEP_SECONDS)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def _recover(self) -> None:
        change = "UPDATE jobs SET status = ?, error = ?, updated = ? WHERE status = 'running' AND attempts {} ?"
        lost = f"The service ended {MAX_ATTEMPTS} times while this job ran."
        self._run(change.format(">="), "lost", lost, time.time(), MAX_ATTEMPTS)
        self._run(change.format("<"), "queued", None, time.time(), MAX_ATTEMPTS)
        kept = {key for (key,) in self._run("SELECT id FROM jobs WHERE status = 'queued'")}
        for file in self.files.iterdir():  # of ended jobs, and of uploads that never became one
            if file.stem not in kept:
                file.unlink()
        missing = [
            key
            for key, name, url in self._run("SELECT id, name, url FROM jobs WHERE status = 'queued'")
            if url is None and not self._place(key, name).is_file()
        ]
        for key in missing:
            self._end(key, "lost", "The uploaded file is missing.", "queued")

    def _end(self, key: str, status: str, error: str, before: str = "running") -> None:
        change = "UPDATE jobs SET status = ?, error = ?, updated = ? WHERE id = ? AND status = ?"
        self._run(change, status, error, time.time(), key, before)
        self._delete_upload(key)

    def _place(self, key: str, name: str) -> Path:
        return self.files / f"{key}{Path(name).suffix.lower()}"

    def _delete_upload(self, key: str) -> None:
        for file in self.files.glob(f"{key}*"):
            file.unlink(missing_ok=True)

    def _run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._base.execute(statement, values).fetchall()

    def _one(self, statement: str, *values: object) -> Job | None:
        rows = self._run(statement, *values)
        if not rows:
            return None
        fields = dict(zip((field.name for field in dataclasses.fields(Job)), rows[0], strict=True))
        return Job(**fields | {"result": None if fields["result"] is None else json.loads(fields["result"])})
