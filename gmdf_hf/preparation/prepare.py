"""Preparation of a domain: from a listing of records to Parquet files for `load_dataset` and `meta_train.py`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gmdf_hf.common.errors import WorkError
from gmdf_hf.common.files import file_stamp, readable
from gmdf_hf.common.locks import locked_folder
from gmdf_hf.common.resume import begin, differences, write_whole, write_whole_text
from gmdf_hf.common.schema import SCHEMA_VERSION, SPLITS
from gmdf_hf.preparation.crops import CropSettings
from gmdf_hf.preparation.dataset_card import domain_card
from gmdf_hf.preparation.detectors import DETECTORS
from gmdf_hf.preparation.duplicates import Duplicate, near_duplicates
from gmdf_hf.preparation.faces import RETINAFACE, YUNET, find_weights
from gmdf_hf.preparation.sources.record import Listing, check_leaks, some
from gmdf_hf.preparation.work_files import Part, Skip, read_part
from gmdf_hf.preparation.workers import ENGINES, Job, Unit, make_units, run_units

# Increased when the same settings would give other bytes.
VERSION = 3
LANDMARK_DETECTORS = ("yunet", "retinaface")


@dataclass(frozen=True)
class Progress:
    """Progress after a unit: units, videos and faces done so far, and total number of units."""

    units: int
    videos: int
    faces: int
    total: int


def prepare(
    listing: Listing,
    output: str | Path,
    source: str,
    settings: CropSettings | None = None,
    detector: str = "yunet",
    weights: str | Path | None = None,
    processes: int = 1,
    engine: str = "processes",
    shard: tuple[int, int] = (1, 1),
    max_skipped: float = 0.05,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Turn records into a prepared domain.

    `output` gets `data/<split>-*.parquet`, a dataset card, `summary.json`, `skipped.csv` and `duplicates.csv`. An
    interrupted call can be repeated with the same arguments: the work resumes, and the files are byte-identical.

    Args:
        listing: Result of an importer.
        output: Folder of the domain.
        source: Name of the data set, for the card.
        settings: Crop settings; the defaults when None.
        detector: Name of the face detector.
        weights: Local weights file of the detector; None uses the pinned weights from the hub.
        processes: Number of worker processes.
        engine: `processes` or `ray`.
        shard: `(i, n)`: process the i-th of n parts of the work, i from 1. All machines need the same records.
        max_skipped: Maximum share of records without rows.
        on_progress: Called after each unit.

    Returns:
        The content of `summary.json`.

    Raises:
        SourceError: If a group or video is in two splits.
        DetectorError: If the detector cannot be set up.
        WorkError: If `output` has other content, too many records are skipped, or a worker dies.
        ValueError: If an argument is out of range.
    """
    settings = settings or CropSettings()
    number, of = shard
    if not 1 <= number <= of:
        raise ValueError(f"shard is {number}/{of}, expected i/n with i from 1 to n.")
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}.")
    if processes < 1 or not 0 <= max_skipped <= 1:
        raise ValueError(f"processes is {processes} and max_skipped {max_skipped}, expected at least 1 and 0 to 1.")
    if detector not in DETECTORS:
        raise ValueError(f"detector is {detector!r}, expected one of {', '.join(DETECTORS)}.")
    if weights is not None and detector not in LANDMARK_DETECTORS:
        raise ValueError(f"Detector {detector} has no weights, found {weights}.")
    if settings.crop == "aligned" and detector not in LANDMARK_DETECTORS:
        raise ValueError(
            f"Aligned crops need landmarks, which {detector} has not: use {' or '.join(LANDMARK_DETECTORS)}."
        )
    check_leaks(listing.records)
    weights_file = None
    if detector in LANDMARK_DETECTORS:
        weights_file = find_weights(YUNET if detector == "yunet" else RETINAFACE, weights)
    tag = "" if of == 1 else f"-{number}-of-{of}"
    output = Path(output)
    state = _fingerprint(listing, source, settings, detector, weights_file, shard)
    with locked_folder(output, tag):
        finished = _begin(output, tag, state)
        if finished is not None:
            return finished
        job = Job(output / f".work{tag}", settings, detector, weights_file)
        units = [unit for unit in make_units(listing.records) if unit.index % of == number - 1]
        parts = _run(units, job, processes, engine, max_skipped, on_progress, output / f"skipped{tag}.csv", listing)
        return _finish(output, tag, units, parts, listing, state)


def _fingerprint(
    listing: Listing, source: str, settings: CropSettings, detector: str, weights: Path | None, shard: tuple[int, int]
) -> dict[str, Any]:
    """Return all settings and inputs that determine the bytes of the result.

    Files are identified by name, size and modification time, not by folder, so a domain can be finished on another
    machine if the data are copied with their times (`rsync -a`, `cp -p`).
    """
    digest, files = hashlib.sha256(), hashlib.sha256()
    for record in listing.records:
        mask = None if record.mask is None else Path(record.mask.name)
        digest.update(repr(replace(record, path=Path(record.path.name), mask=mask)).encode())
        for file in record.files:
            files.update(file_stamp(file).encode())
    return {
        "version": VERSION,
        "source": source,
        **asdict(settings),
        "detector": detector,
        "weights_sha256": None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest(),
        "shard": f"{shard[0]}/{shard[1]}",
        "records": len(listing.records),
        "records_sha256": digest.hexdigest(),
        "files_sha256": files.hexdigest(),
    }


def _begin(output: Path, tag: str, state: dict[str, Any]) -> dict[str, Any] | None:
    """Open or create the output folder; return the summary if the work is already finished."""
    summary, work = output / f"summary{tag}.json", output / f".work{tag}"
    begun = work / "settings.json"
    if summary.is_file() or begun.is_file():
        if summary.is_file():
            # Domains of earlier versions do not list their files.
            unknown = {"files_sha256": state["files_sha256"]}
            changed = differences(unknown | json.loads(summary.read_text(encoding="utf-8"))["settings"], state)
        else:
            changed = begin(begun, state, ["files_sha256"])
        if [difference.name for difference in changed] == ["files_sha256"]:
            raise WorkError(
                f"Files of the data set were replaced since {output} was begun: their sizes or times of change "
                "differ. Choose another output folder, or delete that one to prepare them anew."
            )
        if changed:
            words = some([f"{each.name} {each.found!r}, now {each.expected!r}" for each in changed])
            raise WorkError(f"{output} holds or is becoming another domain: it was begun with {words}.")
    if summary.is_file():
        shutil.rmtree(work, ignore_errors=True)  # left by a run that was stopped during clean-up
        return json.loads(summary.read_text())
    if not work.exists() and any((output / "data").glob("*" if not tag else f"*{tag}-*")):
        raise WorkError(f"{output / 'data'} has files that no run of this program is finishing; choose another folder.")
    begin(begun, state)
    return None


def _run(
    units: list[Unit],
    job: Job,
    processes: int,
    engine: str,
    max_skipped: float,
    on_progress: Callable[[Progress], None] | None,
    skipped_csv: Path,
    listing: Listing,
) -> list[Part]:
    parts: dict[Path, Part] = {}
    total = sum(len(unit.records) for unit in units)
    skipped = videos = faces = 0

    def add(part: Part) -> None:
        nonlocal skipped, videos, faces
        parts[part.path] = part
        skipped += sum(not skip.frames for skip in part.skipped)
        videos += part.videos
        faces += part.rows
        if on_progress is not None:
            on_progress(Progress(len(parts), videos, faces, len(units)))
        if skipped > max_skipped * total:
            everything = [skip for part in parts.values() for skip in part.skipped]
            _write_skipped(skipped_csv, everything, listing)
            reasons = [f"{skip.file} ({skip.reason})" for skip in everything if not skip.frames]
            raise WorkError(
                f"{skipped} of {total} videos or images gave no face, more than --max_skipped {max_skipped} allows: "
                f"{some(reasons, 3)}. All are in {skipped_csv}."
            )

    there = [unit for unit in units if unit.part(job).exists()]
    for unit in there:
        add(read_part(unit.part(job)))
    missing = [unit for unit in units if unit.part(job) not in parts]
    for part in run_units(missing, job, processes, engine):
        add(part)
    return [parts[unit.part(job)] for unit in units]


def _finish(
    output: Path, tag: str, units: list[Unit], parts: list[Part], listing: Listing, state: dict[str, Any]
) -> dict[str, Any]:
    """Write shards and reports, each atomically by a rename, the summary last."""
    # `datasets` takes a second to import, and every worker repeats the top-level imports of the main script.
    from gmdf_hf.preparation.shards import write_shards

    work, data = output / f".work{tag}", output / "data"
    data.mkdir(exist_ok=True)
    made = work / "shards"
    made.mkdir(exist_ok=True)
    masks = any(record.has_mask for record in listing.records)
    counts: dict[str, dict[str, Any]] = {}
    hashes: dict[str, tuple[np.ndarray, list[str]]] = {}
    for split in SPLITS:
        mine = [part.path for unit, part in zip(units, parts, strict=True) if unit.records[0].split == split]
        names = write_shards(mine, made, split, tag, masks)
        if names:
            counts[split], hashes[split] = _count(mine)
        for name in names:
            (made / name).replace(data / name)
    skipped = [skip for part in parts for skip in part.skipped]
    _write_skipped(output / f"skipped{tag}.csv", skipped, listing)
    duplicates = _duplicates(hashes)
    _write_csv(
        output / f"duplicates{tag}.csv",
        ("split", "video_id", "other_split", "other_video_id", "pairs"),
        [(one, d.first, two, d.second, d.pairs) for (one, two), found in duplicates.items() for d in found],
    )
    summary = {
        "schema_version": SCHEMA_VERSION,
        "settings": state,
        "splits": counts,
        "skipped": sum(not skip.frames for skip in skipped),
        "lost_frames": sum(len(skip.frames) for skip in skipped),
        "left_out": len(listing.left_out),
        "masks": masks,
        "doubtful_videos": sum(len(part.doubtful) for part in parts),
        "turned": [each for part in parts for each in part.turned],
        "near_duplicate_videos": {f"{one} and {two}": len(found) for (one, two), found in duplicates.items()},
        "notes": listing.notes,
    }
    write_whole_text(
        output / "README.md", domain_card(summary, list(data.glob("*.parquet")))
    )  # includes other machines' files
    write_whole_text(output / f"summary{tag}.json", json.dumps(summary, indent=1))
    shutil.rmtree(work)
    return summary


def _count(parts: list[Path]) -> tuple[dict[str, Any], tuple[np.ndarray, list[str]]]:
    """Count rows, videos and groups of one split; also return the perceptual hash and video of each row."""
    hashes: list[np.ndarray] = []
    video_of_row: list[str] = []
    groups: set[str] = set()
    videos: dict[str, tuple[int, str]] = {}
    rows: dict[str, int] = {}
    for part in parts:
        table = pq.read_table(part, columns=["label", "video_id", "method", "group", "hash"])
        hashes.append(table["hash"].to_numpy())
        groups.update(table["group"].to_pylist())
        ids, labels, methods = (table[name].to_pylist() for name in ("video_id", "label", "method"))
        video_of_row += ids
        for video, label, method in zip(ids, labels, methods, strict=True):
            videos[video] = (label, method)
            rows[method] = rows.get(method, 0) + 1
    methods = sorted({method for _, method in videos.values()})
    counts = {
        "rows": len(video_of_row),
        "groups": len(groups),
        "real_videos": sum(label == 0 for label, _ in videos.values()),
        "fake_videos": sum(label == 1 for label, _ in videos.values()),
        "methods": {m: {"videos": sum(m == method for _, method in videos.values()), "rows": rows[m]} for m in methods},
    }
    return counts, (np.concatenate(hashes), video_of_row)


def _duplicates(hashes: dict[str, tuple[np.ndarray, list[str]]]) -> dict[tuple[str, str], list[Duplicate]]:
    pairs = (("train", "test"), ("train", "validation"), ("validation", "test"))
    return {
        (one, two): near_duplicates(*hashes[one], *hashes[two]) for one, two in pairs if one in hashes and two in hashes
    }


def _write_skipped(path: Path, skipped: list[Skip], listing: Listing) -> None:
    rows = [(skip.file, skip.video_id, " ".join(map(str, skip.frames)) or "all", skip.reason) for skip in skipped]
    rows += [(readable(file), "", "all", readable(reason)) for file, reason in listing.left_out]
    _write_csv(path, ("file", "video_id", "frames", "reason"), rows)


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    write_whole(path, lambda new: new.write_bytes(text.getvalue().encode()))
