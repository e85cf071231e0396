"""Partial score tables on disk, so that an interrupted evaluation resumes.

A part file holds rows of the score table with four more columns: row in the domain, batch number, digest of the batch,
and the reason if the image is unreadable. Each part replaces its file atomically.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from gmdf_hf.common.errors import DomainError, UserError
from gmdf_hf.common.resume import begin, unit_file, unit_files, write_unit, write_whole_text
from gmdf_hf.data.frames import Frame, Skipped
from gmdf_hf.evaluation.scoring import Batch, FrameBatches, ScoredBatch, score_rows

BATCHES_IN_A_PART = 16
# Sort order of the final score table.
ORDER = ("video_id", "method", "frame", "label")


def claim_folder(folder: Path, request: dict) -> None:
    """Start an evaluation in a folder, or resume the same one.

    Args:
        folder: Output folder; created if missing.
        request: JSON value of everything the scores depend on.

    Raises:
        UserError: If the folder holds another evaluation.
    """
    # Evaluations of earlier versions do not say of which files their data were, and had one precision.
    unknown = ["data"] + ["dtype"] * (request.get("dtype") == "float32")
    for each in begin(folder / "request.json", request, unknown):
        raise UserError(
            f"{folder} holds an evaluation with another {each.name}: found {each.found!r}, expected "
            f"{each.expected!r}. Choose another output_dir, or delete that one."
        )


def frames_digest(frames: Iterable[Frame]) -> str:
    """Digest of the frames' metadata, without their images."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr((frame.row, frame.video_id, frame.method, frame.number, frame.label)).encode())
    return digest.hexdigest()[:16]


class BatchQueue:
    """Batches of a domain without scores so far, in order.

    Args:
        source: Frames of the domain.
        folder: Folder of the domain's parts; created if missing.
        batch_size: Frames per batch.

    Attributes:
        frames: Number of frames of the domain, known after a full iteration.
    """

    def __init__(self, source: FrameBatches, folder: Path, batch_size: int):
        self.source, self.folder, self.frames = source, folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._note = folder / "frames.json"  # number of frames, written by the first process that reaches the end
        columns = [pd.read_parquet(path, columns=["batch", "digest"]) for path in unit_files(folder)]
        self._done: dict[int, str] = (
            dict(pd.concat(columns).drop_duplicates().itertuples(index=False)) if columns else {}
        )
        # A finished stream is not read again.
        noted = self._noted()
        self._finished = noted is not None and len(self._done) * batch_size >= noted
        if self._finished and noted is not None:
            self.frames = noted

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the unscored batches.

        Raises:
            UserError: If the frames differ from those scored before.
            DomainError: If the domain has no frames.
        """
        if self._finished:
            return
        for number, frames in enumerate(self.source.batches):
            self.frames += len(frames)
            if number not in self._done:
                yield Batch(number, frames)
            elif self._done[number] != frames_digest(frames):
                self._refuse(f"batch {number} holds other frames than those scored before")
        if not self.frames:
            raise DomainError(f"Domain {self.source.name!r} has no frames.")
        if self._noted() not in (None, self.frames):
            self._refuse(f"found {self.frames} frames, expected {self._noted()}")
        write_whole_text(self._note, json.dumps(self.frames))

    def _noted(self) -> int | None:
        return json.loads(self._note.read_text()) if self._note.exists() else None

    def _refuse(self, difference: str) -> None:
        raise UserError(
            f"The data of domain {self.source.name!r} changed since scores were written to {self.folder}: "
            f"{difference}. Delete that folder, or choose another output_dir."
        )


def write_parts(folder: Path, scored: Iterable[ScoredBatch]) -> None:
    """Write scored batches to part files, `BATCHES_IN_A_PART` batches per file.

    Args:
        folder: Folder of the domain's parts.
        scored: Output of `score_batches`.
    """
    part: list[pd.DataFrame] = []

    def flush() -> None:
        if part:
            table = pd.concat(part, ignore_index=True)
            path = unit_file(folder, table["batch"].iloc[0], table["batch"].iloc[-1])
            write_unit(path, pa.Table.from_pandas(table))
            part.clear()

    for number, frames, scores, reasons in scored:
        rows = [frame.row for frame in frames]
        table = score_rows(frames, scores)
        part.append(table.assign(row=rows, batch=number, digest=frames_digest(frames), reason=reasons))
        if len(part) == BATCHES_IN_A_PART:
            flush()
    flush()


def join_parts(folder: Path, name: str, frames: int) -> tuple[pd.DataFrame, list[Skipped]]:
    """Join the parts of a domain to its sorted score table and the list of unreadable frames.

    Args:
        folder: Folder of the domain's parts.
        name: Name of the domain.
        frames: Number of frames of the domain.

    Raises:
        UserError: If a frame is missing or duplicated.
    """
    parts = pd.concat([pd.read_parquet(path) for path in unit_files(folder)], ignore_index=True)
    if not np.array_equal(np.sort(parts["row"].to_numpy()), np.arange(frames)):
        raise UserError(
            f"{folder} must hold each of the {frames} frames of domain {name!r} once, found "
            f"{len(parts)} rows of {parts['row'].nunique()} frames. Delete it and score the domain again."
        )
    unread = parts["reason"] != ""
    rows, reasons = parts.loc[unread, "row"].tolist(), parts.loc[unread, "reason"].tolist()
    skipped = [Skipped(name, row, reason) for row, reason in zip(rows, reasons, strict=True)]
    # A video of which nothing could be read keeps a row without a score, and counts as not scored.
    keys = [column for column in ("method", "video_id", "label") if column in parts.columns]
    lost = parts.assign(unread=unread).groupby(keys, dropna=False)["unread"].transform("all")
    kept = ~unread | (lost & ~parts.duplicated(keys))
    parts["face_found"] = ~unread
    # Ties in ORDER keep the batch order.
    table = parts[kept].sort_values("batch", kind="stable")
    table = table.sort_values([column for column in ORDER if column in table.columns], kind="stable")
    return table.drop(columns=["row", "batch", "digest", "reason"]).reset_index(drop=True), skipped
