"""What several processes have scored so far, in files that a killed run leaves whole.

A part holds rows of the table of scores, and for each its row in the domain, its batch, that batch's digest, and why
its image could not be read: a stream cannot be asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from gmdf_hf.common.errors import DomainError, UserError
from gmdf_hf.data.frames import Frame, Skipped
from gmdf_hf.evaluation.scoring import Batch, FrameBatches, ScoredBatch, score_rows

BATCHES_IN_A_PART = 16
# The order of the table of scores; a stream comes in its own.
ORDER = ("video_id", "method", "frame", "label")


def claim_folder(folder: Path, request: dict) -> None:
    """Begin an evaluation in a folder, or go on with the same one.

    Args:
        folder: Made if it is not there.
        request: All that the scores depend on, as JSON.

    Raises:
        UserError: If another evaluation was begun there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "request.json"
    request = json.loads(json.dumps(request))
    if path.exists():
        found = json.loads(path.read_text())
        found.setdefault("data", request.get("data"))  # evaluations of earlier versions do not say
        if differing := [key for key in request if found.get(key) != request[key]]:
            key = differing[0]
            raise UserError(
                f"{folder} holds an evaluation with another {key}: found {found.get(key)!r}, asked for "
                f"{request[key]!r}. Choose another output_dir, or delete that one."
            )
        return
    _write_whole(path, lambda new: new.write_text(json.dumps(request, indent=2) + "\n"))


def frames_digest(frames: Iterable[Frame]) -> str:
    """What tells frames from others without their images."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr((frame.row, frame.video_id, frame.method, frame.number, frame.label)).encode())
    return digest.hexdigest()[:16]


class BatchQueue:
    """The batches of a domain that have no scores yet, in their order.

    Args:
        source: The domain.
        folder: Of its parts; made if it is not there.
        batch_size: Frames in a batch.

    Attributes:
        frames: How many frames the domain has, once the queue was gone through to its end.
    """

    def __init__(self, source: FrameBatches, folder: Path, batch_size: int):
        self.source, self.folder, self.frames = source, folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._note = folder / "frames.json"  # how many there are, once a process has come to the end
        columns = [pd.read_parquet(path, columns=["batch", "digest"]) for path in sorted(folder.glob("*.parquet"))]
        self._done = dict(pd.concat(columns).drop_duplicates().itertuples(index=False)) if columns else {}
        # Going through a finished domain would be reading a stream for nothing.
        noted = self._noted()
        self._finished = noted is not None and len(self._done) * batch_size >= noted

    def __iter__(self) -> Iterator[Batch]:
        """Go through the domain.

        Raises:
            UserError: If its frames are not those that were scored before.
            DomainError: If it has none.
        """
        if self._finished:
            self.frames = self._noted()
            return
        for number, frames in enumerate(self.source.batches):
            self.frames += len(frames)
            if number not in self._done:
                yield Batch(number, frames)
            elif self._done[number] != frames_digest(frames):
                self._refuse(f"batch {number} holds other frames than those that were scored")
        if not self.frames:
            raise DomainError(f"Domain {self.source.name!r} has no frames.")
        if self._noted() not in (None, self.frames):
            self._refuse(f"it has {self.frames} frames, and had {self._noted()} before")
        _write_whole(self._note, lambda new: new.write_text(json.dumps(self.frames)))

    def _noted(self) -> int | None:
        return json.loads(self._note.read_text()) if self._note.exists() else None

    def _refuse(self, difference: str) -> None:
        raise UserError(
            f"The data of domain {self.source.name!r} changed since scores of it were written to {self.folder}: "
            f"{difference}. Delete that folder, or choose another output_dir."
        )


def write_parts(folder: Path, scored: Iterable[ScoredBatch]) -> None:
    """Write the scores of batches as they come, some batches a file.

    Args:
        folder: Of one domain.
        scored: What `score_batches` yields.
    """
    part: list[pd.DataFrame] = []

    def flush() -> None:
        if part:
            table = pd.concat(part, ignore_index=True)
            path = folder / f"{table['batch'].iloc[0]:08}-{table['batch'].iloc[-1]:08}.parquet"
            _write_whole(path, table.to_parquet)
            part.clear()

    for number, frames, scores, reasons in scored:
        rows = [frame.row for frame in frames]
        table = score_rows(frames, scores)
        part.append(table.assign(row=rows, batch=number, digest=frames_digest(frames), reason=reasons))
        if len(part) == BATCHES_IN_A_PART:
            flush()
    flush()


def join_parts(folder: Path, name: str, frames: int) -> tuple[pd.DataFrame, list[Skipped]]:
    """A domain's part of the table of scores, in its order, and the frames that could not be read.

    Args:
        folder: Of the domain.
        name: Of the domain.
        frames: How many it has.

    Raises:
        UserError: If a frame is missing or stands there twice.
    """
    parts = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)
    if not np.array_equal(np.sort(parts["row"].to_numpy()), np.arange(frames)):
        raise UserError(
            f"{folder} should hold each of the {frames} frames of domain {name!r} once, found "
            f"{len(parts)} rows of {parts['row'].nunique()} frames. Delete it and score the domain again."
        )
    unread = parts["reason"] != ""
    skipped = [Skipped(name, int(item.row), item.reason) for item in parts[unread].itertuples()]
    # Frames that agree in all of ORDER keep the order of their batches.
    table = parts[~unread].sort_values("batch", kind="stable")
    table = table.sort_values([column for column in ORDER if column in table.columns], kind="stable")
    return table.drop(columns=["row", "batch", "digest", "reason"]).reset_index(drop=True), skipped


def _write_whole(path: Path, write) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    write(new)
    new.replace(path)
