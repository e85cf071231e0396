"""Units of work, and engines to run them in parallel."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2

from gmdf_hf.common import images
from gmdf_hf.common.errors import ArchiveError, WorkError
from gmdf_hf.common.files import readable
from gmdf_hf.common.ray_cluster import start_ray
from gmdf_hf.common.resume import unit_file
from gmdf_hf.common.schema import FAKE, SPLITS
from gmdf_hf.preparation.archives import is_archive
from gmdf_hf.preparation.crops import Crop, Crops, CropSettings, make_crops
from gmdf_hf.preparation.detectors import load_detector
from gmdf_hf.preparation.faces import Detector
from gmdf_hf.preparation.pictures import read_archive, read_masks, read_pictures
from gmdf_hf.preparation.sources.record import Record, some
from gmdf_hf.preparation.video import VideoError
from gmdf_hf.preparation.work_files import Part, Skip, read_part, write_part

ENGINES = ("processes", "ray")
# Single images are grouped into units, so that the overhead of a unit is negligible.
IMAGES_PER_UNIT = 256


@dataclass(frozen=True)
class Job:
    """Settings shared by all units of work.

    Attributes:
        folder: Output folder of the parts.
        settings: Crop settings.
        detector: Name of the face detector.
        weights: Its weights file, if it has one.
    """

    folder: Path
    settings: CropSettings
    detector: str
    weights: Path | None


@dataclass(frozen=True)
class Unit:
    """Records of one split that a worker processes together: a video, a whole tar, or some images."""

    index: int
    records: tuple[Record, ...]

    def part(self, job: Job) -> Path:
        """Return the output file of the unit."""
        return unit_file(job.folder, self.index)


def make_units(records: list[Record]) -> list[Unit]:
    """Sort records by split and group them into units, deterministically."""
    batches: list[list[Record]] = []
    for split in SPLITS:
        last: tuple[object, ...] | None = None
        for record in (record for record in records if record.split == split):
            kind = _kind(record)
            if (
                last is None
                or kind is None
                or kind != last
                or (kind[0] == "images" and len(batches[-1]) == IMAGES_PER_UNIT)
            ):
                batches.append([])
            batches[-1].append(record)
            last = kind
    return [Unit(index, tuple(batch)) for index, batch in enumerate(batches)]


def _kind(record: Record) -> tuple[object, ...] | None:
    """Return the grouping key of a record; None for a record that is a unit by itself."""
    if is_archive(record.path):
        # A tar can only be read sequentially, so it is one unit.
        return ("images" if str(record.path).lower().endswith(".zip") else "tar", record.path)
    if record.members[1:] or (not record.members and record.path.suffix.lower() not in images.SUFFIXES):
        return None
    return ("images", None)


def run_unit(unit: Unit, job: Job) -> Part:
    """Process a unit and write its part; skip it if the part exists."""
    path = unit.part(job)
    if not path.exists():
        rows: list[dict[str, object]] = []
        skipped: list[Skip] = []
        doubtful: list[str] = []
        turned: list[str] = []
        suffix = "jpg" if job.settings.format == "jpeg" else "png"
        for record, crops in _crops(unit, job):
            rows += [_row(record, crop, suffix) for crop in crops.rows]
            skipped += _skips(record, crops)
            if record.label == FAKE and crops.rows and crops.people > 1 and not record.has_mask:
                doubtful.append(record.video_id)
            if crops.rows and crops.turned:
                turned.append(f"{record.video_id} ({crops.turned} degrees)")
        write_part(path, rows, skipped, doubtful, turned)
    return read_part(path)


def _row(record: Record, crop: Crop, suffix: str) -> dict[str, object]:
    name = f"{record.video_id}/{crop.frame:06}"
    return {
        "image": {"bytes": crop.image, "path": f"{name}.{suffix}"},
        "label": record.label,
        "video_id": record.video_id,
        "frame": crop.frame,
        "method": record.method,
        "group": record.group,
        "seconds": crop.seconds,
        "mask": None if crop.mask is None else {"bytes": crop.mask, "path": f"{name}.mask.png"},
        "hash": crop.hash,
    }


def _crops(unit: Unit, job: Job) -> Iterator[tuple[Record, Crops]]:
    detector = _detector(job.detector, job.weights)
    first = unit.records[0]
    if not is_archive(first.path):
        yield from ((record, _record_crops(record, detector, job.settings)) for record in unit.records)
        return
    left = dict.fromkeys(unit.records)
    reason = f"{first.path}: members are missing."
    try:
        for record, pictures in read_archive(list(unit.records), job.settings.frames):
            del left[record]
            yield record, make_crops(partial(iter, pictures), detector, job.settings)
    except ArchiveError as error:
        reason = str(error)
    for record in left:
        yield record, Crops([], [(None, reason)])


def _record_crops(record: Record, detector: Detector, settings: CropSettings) -> Crops:
    try:
        masks = partial(read_masks, record, settings.frames) if record.has_mask else None
        return make_crops(partial(read_pictures, record, settings.frames), detector, settings, masks)
    except VideoError as error:
        return Crops([], [(None, str(error))])


def _skips(record: Record, crops: Crops) -> Iterator[Skip]:
    file = readable(record.path) + (f": {some(record.members, 1)}" if record.members else "")
    reasons: dict[str, list[int]] = {}
    for frame, reason in crops.lost:
        reasons.setdefault(readable(reason), []).extend([] if frame is None else [frame])
    if crops.rows:
        for reason, frames in reasons.items():
            yield Skip(file, record.video_id, tuple(sorted(frames)), reason)
    else:
        yield Skip(file, record.video_id, (), some(list(reasons), 2) or "no frames")


@lru_cache(maxsize=1)
def _detector(name: str, weights: Path | None) -> Detector:
    # Parallelism is over processes; additional threads would compete for the cores and change the order of sums.
    cv2.setNumThreads(1)
    if name == "retinaface":
        import torch

        torch.set_num_threads(1)
    return load_detector(name, weights)


def run_units(units: list[Unit], job: Job, processes: int, engine: str) -> Iterator[Part]:
    """Run units and yield their parts as they finish.

    Raises:
        WorkError: If a worker dies, or the engine is not installed.
    """
    if engine == "ray":
        yield from _run_ray(units, job, processes)
    elif processes == 1:
        for unit in units:
            yield run_unit(unit, job)
    else:
        yield from _run_processes(units, job, processes)


def _run_processes(units: list[Unit], job: Job, processes: int) -> Iterator[Part]:
    context = multiprocessing.get_context("spawn")  # a fork would copy running decoder and detector threads
    pending: dict[Future[Part], Unit] = {}
    rest = iter(units)
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        try:
            while True:
                # Units are submitted a few at a time, as millions would fill memory.
                while len(pending) < 3 * processes and (unit := next(rest, None)) is not None:
                    pending[pool.submit(run_unit, unit, job)] = unit
                if not pending:
                    return
                done = wait(pending, return_when=FIRST_COMPLETED).done
                for future in done:
                    part = future.result()
                    del pending[future]
                    yield part
        except BrokenProcessPool as error:
            files = [str(unit.records[0].path) for unit in pending.values()]
            raise WorkError(
                f"A worker died, probably for lack of memory or in a codec, at one of: {some(files)}. What is done is "
                "kept: start again to go on, with fewer --processes, or without the file that kills it."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Make a worker exit with the main process, even after `kill -9`; the pool alone would leave it waiting."""
    parent = multiprocessing.parent_process()
    if parent is None:  # not in a worker
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_ray(units: list[Unit], job: Job, processes: int) -> Iterator[Part]:
    start_ray(processes)
    import ray

    by_index = {unit.index: unit for unit in units}
    data = ray.data.from_items([{"index": unit.index, "unit": unit} for unit in units])

    def work(row: dict[str, Any]) -> dict[str, Any]:
        run_unit(row["unit"], job)
        return {"index": row["index"]}

    for row in data.map(work, concurrency=processes).iter_rows():
        yield read_part(by_index[row["index"]].part(job))
