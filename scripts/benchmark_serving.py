"""Figures of scoring and prediction that `benchmark.py` prints: half precision, runtimes, memory, finding faces."""

from __future__ import annotations

import csv
import itertools
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmdf_hf.evaluation.precision import has_bfloat16_units, scoring_in
from gmdf_hf.modeling import GMDFImageProcessor, GMDFModel

VARIANTS: dict[str, list[str]] = {
    "bfloat16": ["--dtype", "bfloat16"],
    "onnx": ["--runtime", "onnx"],
    "onnx-int8": ["--runtime", "onnx-int8"],
    "openvino": ["--runtime", "openvino"],
    "openvino, --dtype auto": ["--runtime", "openvino", "--dtype", "auto"],
}
NEAR = 0.01  # of the threshold, where a verdict may differ
# Prediction in its own process, from its start to the last verdict.
PREDICT = "from gmdf_hf.scripts.benchmark_serving import predict_and_report; predict_and_report()"


@dataclass(frozen=True)
class Costs:
    """One run of `gmdf predict`.

    Attributes:
        wall: Seconds from start to end.
        cpu: Processor seconds of the process and its children.
        mib: Peak memory in MiB.
        scores: Scores by file; None without a face.
        threshold: Smallest score called fake.
    """

    wall: float
    cpu: float
    mib: float
    scores: dict[str, float | None]
    threshold: float


def peak_mib() -> float:
    """Peak memory of this process in MiB."""
    # On Linux, `ru_maxrss` is at least the parent's memory at the start of this process.
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def predict_and_report() -> None:
    """Run `gmdf predict` with the command line's options; the last line of stderr has the costs."""
    from gmdf_hf.scripts import predict

    try:
        predict.run()
    except SystemExit as end:
        if end.code not in (0, predict.UNREADABLE):
            raise
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in used)
    print(json.dumps({"cpu": cpu, "mib": peak_mib()}), file=sys.stderr)


def predict(model: Path, files: Path, options: Sequence[str]) -> Costs:
    """Score a folder with `gmdf predict` in a process of its own."""
    command = [sys.executable, "-c", PREDICT, str(files), "--model", str(model), "--csv", *options]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    scores = {row["source"]: float(row["score"]) if row["score"] else None for row in rows}
    found = json.loads(done.stderr.splitlines()[-1])
    return Costs(wall, found["cpu"], found["mib"], scores, float(rows[0]["threshold"]))


def other_verdicts(ours: Costs, reference: Costs) -> int:
    """Files with another verdict, but for those whose reference score is within `NEAR` of the threshold."""
    count = 0
    for source, exact in reference.scores.items():
        score, threshold = ours.scores[source], reference.threshold
        if exact is None or score is None:
            count += exact is not score
        elif abs(exact - threshold) > NEAR:
            count += (score >= threshold) != (exact >= threshold)
    return count


@contextmanager
def exported(model: GMDFModel) -> Iterator[Path]:
    """Folder of a model with its exports."""
    from gmdf_hf.serving.onnx_export import export_onnx, quantize

    with tempfile.TemporaryDirectory() as name:
        folder, processor = Path(name), GMDFImageProcessor.of_size(model.config.image_size)
        model.save_pretrained(folder, slim=True)
        processor.save_pretrained(folder)
        export_onnx(GMDFModel.from_pretrained(folder).eval(), processor, folder / "model.onnx")
        quantize(folder / "model.onnx", folder / "model.int8.onnx")
        yield folder


def measure_runtimes(model: Path, files: Path, options: Sequence[str], repeats: int, emit: Callable[..., None]) -> None:
    """Time of `gmdf predict` by each runtime and precision divided by that of PyTorch in single precision."""
    runs: dict[str, list[Costs]] = {name: [] for name in ("torch", *VARIANTS)}
    for _ in range(repeats):
        for name, found in runs.items():
            found.append(predict(model, files, [*options, *VARIANTS.get(name, [])]))
    reference = runs["torch"][0]
    walls = {name: statistics.median(run.wall for run in found) for name, found in runs.items()}
    cpus = {name: statistics.median(run.cpu for run in found) for name, found in runs.items()}
    for name in VARIANTS:
        ours, pairs = runs[name][0], reference.scores.items()
        gaps = [abs(exact - other) for file, exact in pairs if exact is not None and (other := ours.scores[file])]
        details: dict[str, Any] = {"ours_s": walls[name], "peer_s": walls["torch"], "files": len(reference.scores)}
        details |= {"cpu_ratio": cpus[name] / cpus["torch"], "ours_cpu_s": cpus[name], "peer_cpu_s": cpus["torch"]}
        details |= {"other_verdicts": other_verdicts(ours, reference), "largest_difference": max(gaps, default=0.0)}
        emit(f"gmdf predict, {name} / PyTorch float32", walls[name] / walls["torch"], "<= 0.4", **details)


def measure_memory(model: Path, files: Path, options: Sequence[str], emit: Callable[..., None]) -> None:
    """Peak memory of `gmdf predict` over 1,000 files divided by that over 10; the 1,000 are the ten, repeated."""
    pictures = sorted(path.resolve() for path in files.rglob("*") if path.is_file())
    pictures = pictures[:: max(1, len(pictures) // 10)][:10]  # of all folders and sizes
    peaks = []
    for count in (10, 1000):
        with tempfile.TemporaryDirectory() as name:
            for number, picture in enumerate(itertools.islice(itertools.cycle(pictures), count)):
                Path(name, f"{number:04}{picture.suffix}").symlink_to(picture)
            peaks.append(predict(model, Path(name), options).mib)
    emit("peak memory of gmdf predict, 1,000 files / 10", peaks[1] / peaks[0], "<= 1.05", mib=peaks)


def measure_faces(clip: Path, weights: str | None, repeats: int, emit: Callable[..., None]) -> None:
    """Time to decode a video and find, track and crop its faces divided by the time to decode all its frames."""
    from gmdf_hf.preparation.media import open_media
    from gmdf_hf.scripts.benchmark_prepare import FRAMES, decode
    from gmdf_hf.serving.faces import load_finder

    finder = load_finder("yunet", weights, 224)
    work = {"decode": lambda: decode(clip), "faces": lambda: finder(open_media(clip, FRAMES, None, str(clip)))}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for name in list(work) * (repeats + 1):
        started = time.perf_counter(), time.process_time()
        work[name]()
        times[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    (bare, bare_cpu), (ours, ours_cpu) = (np.median(times[name][1:], axis=0) for name in work)
    details = {"ours_s": ours, "peer_s": bare, "cpu_ratio": ours_cpu / bare_cpu}
    emit("decode, detect and crop / decode every frame", ours / bare, "<= 1.3", **details)


@torch.no_grad()
def measure_precision(model: GMDFModel, images: torch.Tensor, repeats: int, emit: Callable[..., None]) -> None:
    """Time of scoring in bfloat16 divided by that in single precision."""
    times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for dtype in list(times) * (repeats + 1):
        started = time.process_time() if images.device.type == "cpu" else time.perf_counter()
        with scoring_in(model, dtype):
            model(images).logits.cpu()
        times[dtype].append((time.process_time() if images.device.type == "cpu" else time.perf_counter()) - started)
    single, half = (statistics.median(found[1:]) for found in times.values())
    units = images.device.type != "cpu" or has_bfloat16_units()
    emit("scoring, bfloat16 / float32", half / single, "<= 0.6", ours_s=half, peer_s=single, bfloat16_units=units)
