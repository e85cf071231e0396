"""Metrics and log of the service."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

logger = logging.getLogger("gmdf.service")


class Figures:
    """Prometheus metrics of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names: dict[str, Any] = {"registry": self.registry}
        self.answers = Counter("gmdf_answers", "Answers by route and status", ["route", "status"], **names)
        self.seconds = Histogram("gmdf_answer_seconds", "Seconds from request to answer", ["route"], **names)
        self.faces = Counter("gmdf_faces", "Scored faces", **names)
        sizes = (1, 2, 4, 8, 16, 32)
        self.batches = Histogram("gmdf_batch_faces", "Faces per batch of the model", buckets=sizes, **names)
        self.waiting = Gauge("gmdf_waiting", "Requests in work or waiting", **names)
        self.jobs = Gauge("gmdf_jobs", "Jobs by status", ["status"], **names)

    def batch(self, size: int) -> None:
        """Count a batch."""
        self.batches.observe(size)
        self.faces.inc(size)


def log(event: str, **fields: Any) -> None:
    """Log one line of JSON; no picture, file name, address or key."""
    logger.info(json.dumps({"time": round(time.time(), 3), "event": event, **fields}))
