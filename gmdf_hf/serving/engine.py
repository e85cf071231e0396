"""Scoring for a server: files are decoded in child processes, and faces of all requests share the model's batches."""

from __future__ import annotations

import copy
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from gmdf_hf.common.images import SUFFIXES as IMAGE_SUFFIXES
from gmdf_hf.preparation.video import SUFFIXES as VIDEO_SUFFIXES
from gmdf_hf.serving.isolated import IsolatedReader
from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline

SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
MAX_BATCH = 32  # faces


class FaceBatcher:
    """Runs the model in one thread on the faces that wait, whichever request they belong to.

    Faces are not delayed to fill a batch: those that arrive while the model runs are the next one.

    Args:
        forward: Function from the pipeline's model inputs, with `pixel_values` of shape `(B, 3, H, W)`, to its outputs.
        on_batch: Called with the size of each batch.
        max_batch: Maximum faces per batch.
    """

    def __init__(
        self,
        forward: Callable[[dict[str, Any]], dict[str, Any]],
        on_batch: Callable[[int], None] = lambda size: None,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self._forward, self._on_batch, self.max_batch = forward, on_batch, max_batch
        self._waiting: queue.SimpleQueue[tuple[torch.Tensor, Future[dict[str, torch.Tensor]]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="faces", daemon=True)
        self._thread.start()

    def submit(self, pixels: torch.Tensor) -> Future[dict[str, torch.Tensor]]:
        """Queue one face of shape `(1, 3, H, W)`; the future has its outputs, `(1, ...)` each."""
        future: Future[dict[str, torch.Tensor]] = Future()
        self._waiting.put((pixels, future))
        return future

    def close(self) -> None:
        """Finish the faces that wait, then end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            is_last = False
            while len(batch) < self.max_batch and not self._waiting.empty():
                item = self._waiting.get()
                if item is None:
                    is_last = True
                    break
                batch.append(item)
            self._score(batch)
            if is_last:
                return

    def _score(self, batch: list[tuple[torch.Tensor, Future[dict[str, torch.Tensor]]]]) -> None:
        try:
            outputs = self._forward({"pixel_values": torch.cat([pixels for pixels, _ in batch])})
            self._on_batch(len(batch))
            for position, (_, future) in enumerate(batch):
                future.set_result({name: value[position : position + 1] for name, value in outputs.items()})
        except Exception as error:  # every request of the batch must be answered
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)


class Engine:
    """Scores files of many threads.

    Args:
        detect: The pipeline `deepfake-detection`.
        max_seconds: Maximum processor time for the frames of one file.
        on_batch: See `FaceBatcher`.
        share: Another engine, whose batches this one shares; it must be closed later.
    """

    def __init__(
        self,
        detect: DeepfakeDetectionPipeline,
        max_seconds: float = 20.0,
        on_batch: Callable[[int], None] = lambda size: None,
        share: Engine | None = None,
    ) -> None:
        self.detect = detect
        self._reader = IsolatedReader(max_seconds)
        self._is_shared = share is not None
        self._batcher: FaceBatcher = FaceBatcher(self._forward, on_batch) if share is None else share._batcher
        self._own = threading.local()

    def score(self, path: Path, name: str, num_frames: int, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Score one file.

        Args:
            path: The file.
            name: Its name in the result and in messages.
            num_frames: Number of frames to read from a video.
            stop: Asked between batches; when it is true the rest is left out and `Cancelled` is raised.

        Returns:
            Result of the pipeline with `on_error="return"`, without pictures.

        Raises:
            Cancelled: If `stop` says so.
        """
        detect = self._pipeline()
        settings = detect._preprocess_params | {"num_frames": num_frames, "on_error": "return"}
        inputs = detect.preprocess(str(path), **settings | {"open_file": self._reader.open})
        outputs = []
        while chunk := list(itertools.islice(inputs, MAX_BATCH)):
            if stop():
                raise Cancelled
            scored = [self._batcher.submit(item.pop("pixel_values")) if item["face"] else None for item in chunk]
            outputs += [
                item | (future.result() if future is not None else {})
                for item, future in zip(chunk, scored, strict=True)
            ]
        result = detect.postprocess(outputs, **detect._postprocess_params | {"on_error": "return"})
        result["source"] = name
        if result["error"] is not None:
            result["error"] = result["error"].replace(str(path), name)
        return result

    def close(self) -> None:
        """End the threads and child processes."""
        if not self._is_shared:
            self._batcher.close()
        self._reader.close()

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        pixels = inputs["pixel_values"].to(self.detect.device)
        with torch.inference_mode():
            outputs = self.detect._forward({"pixel_values": pixels})
        return {name: value.cpu() for name, value in outputs.items()}

    def _pipeline(self) -> DeepfakeDetectionPipeline:
        """This thread's pipeline: the model is shared, face detectors are not safe in several threads."""
        if not hasattr(self._own, "detect"):
            self._own.detect = copy.copy(self.detect)
            self._own.detect._finders = {}
        return self._own.detect


class Cancelled(Exception):
    """The result of a file is no longer wanted."""
