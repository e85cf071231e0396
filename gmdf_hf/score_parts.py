"""What several processes have scored so far, in files that a killed run leaves whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from gmdf_hf.config import UserError
from gmdf_hf.dataset import Domain
from gmdf_hf.frames import Skipped
from gmdf_hf.scoring import score_rows

BATCHES_IN_A_PART = 16


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
        if differing := [key for key in request if found.get(key) != request[key]]:
            key = differing[0]
            raise UserError(
                f"{folder} holds an evaluation with another {key}: found {found.get(key)!r}, asked for "
                f"{request[key]!r}. Choose another output_dir, or delete that one."
            )
        return
    _write_whole(path, lambda new: new.write_text(json.dumps(request, indent=2) + "\n"))


def done_batches(folder: Path) -> set[int]:
    """Numbers of the batches whose scores stand in a folder of parts."""
    columns = [pd.read_parquet(path, columns=["batch"])["batch"] for path in sorted(folder.glob("*.parquet"))]
    return set(np.concatenate(columns).tolist()) if columns else set()


def write_parts(
    folder: Path,
    numbers: Iterable[int],
    scored: Iterable[tuple[np.ndarray, np.ndarray, list[Skipped]]],
) -> None:
    """Write the scores of batches as they come, some batches a file.

    Args:
        folder: Of one domain.
        numbers: Numbers of the batches.
        scored: What `score_batches` yields for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part: list[pd.DataFrame] = []

    def flush() -> None:
        if part:
            table = pd.concat(part, ignore_index=True)
            path = folder / f"{table['batch'].iloc[0]:08}-{table['batch'].iloc[-1]:08}.parquet"
            _write_whole(path, table.to_parquet)
            part.clear()

    for count, (number, (rows, scores, skipped)) in enumerate(zip(numbers, scored, strict=True), start=1):
        unread = [item.row for item in skipped]
        reasons = [""] * len(rows) + [item.reason for item in skipped]
        part.append(
            pd.DataFrame(
                {
                    "batch": number,
                    "row": np.append(rows, unread).astype("int64"),
                    "score": np.append(scores, np.full(len(unread), np.nan)),
                    "reason": reasons,
                }
            )
        )
        if count % BATCHES_IN_A_PART == 0:
            flush()
    flush()


def join_parts(folder: Path, domain: Domain, batches: list[list[int]]) -> tuple[pd.DataFrame, list[Skipped]]:
    """A domain's part of the table of scores, in the order of its batches, and the frames that could not be read.

    Raises:
        UserError: If a frame is missing or stands there twice.
    """
    parts = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)
    order = np.concatenate([np.asarray(rows) for rows in batches])
    if not np.array_equal(np.sort(parts["row"].to_numpy()), np.arange(len(domain))):
        raise UserError(
            f"{folder} should hold each of the {len(domain)} frames of domain {domain.name!r} once, found "
            f"{len(parts)} rows of {parts['row'].nunique()} frames. Delete it and score the domain again."
        )
    parts = parts.set_index("row").loc[order]
    read = parts["score"].notna()
    skipped = [Skipped(domain.name, int(row), reason) for row, reason in parts.loc[~read, "reason"].items()]
    return score_rows(domain, parts.index[read].to_numpy(), parts.loc[read, "score"].to_numpy()), skipped


def _write_whole(path: Path, write) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    write(new)
    new.replace(path)
