"""Speed and memory of preparation, as ratios measured in one run: a JSON line per figure.

    python scripts/benchmark_prepare.py --clip ten_seconds_1080p.mp4 --detector_weights yunet.onnx

Times are the best of several alternating runs, because the machine may be shared.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from pydantic import Field

from gmdf_hf.common.options import Options, parse_options
from gmdf_hf.preparation.crops import CropSettings, make_crops
from gmdf_hf.preparation.detectors import load_detector
from gmdf_hf.preparation.faces import DETECTION_SIDE, MIN_SCORE
from gmdf_hf.preparation.pictures import read_pictures
from gmdf_hf.preparation.prepare import prepare
from gmdf_hf.preparation.sources.record import Listing, Record
from gmdf_hf.preparation.video import even_indices, frame_times

FRAMES = 32


def emit(figure: str, value: float, goal: str, **details: object) -> None:
    """Print one figure."""
    print(json.dumps({"figure": figure, "value": round(value, 3), "goal": goal, **details}), flush=True)


def best(work: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Return the shortest time of each function, run in turn `repeats` times."""
    times: list[list[float]] = [[] for _ in work]
    for _ in range(repeats):
        for function, found in zip(work, times, strict=True):
            start = clock()
            function()
            found.append(clock() - start)
    return [min(found) for found in times]


def listing_of(clip: Path, copies: int) -> Listing:
    """Listing of one clip under `copies` ids."""
    return Listing(
        [Record(clip, n % 2, "real" if n % 2 == 0 else "fake", f"{n}", f"{n}", "train") for n in range(copies)]
    )


def decode(clip: Path) -> None:
    """Plain PyAV: decode every frame and discard it."""
    with av.open(str(clip)) as container:
        for _ in container.decode(video=0):
            pass


def opencv_loop(clip: Path, weights: str) -> None:
    """Plain OpenCV: read every frame, detect faces in the selected ones at the same size."""
    capture = cv2.VideoCapture(str(clip))
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = set(even_indices(total, FRAMES))
    model = cv2.FaceDetectorYN.create(weights, "", (320, 320), MIN_SCORE, 0.3, 50)
    for index in range(total):
        there, frame = capture.read()
        if there and index in wanted:
            factor = DETECTION_SIDE / max(frame.shape[:2])
            small = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            model.setInputSize((small.shape[1], small.shape[0]))
            model.detect(small)
    capture.release()


def peak_memory(videos: int, weights: str) -> int:
    """Peak memory in KiB of a fresh process that prepares `videos` short videos."""
    command = [sys.executable, __file__, "--peak_of", str(videos), "--detector_weights", weights]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def print_peak(videos: int, weights: str) -> None:
    """Prepare short videos in this process and print its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "short.mp4")
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            picture = np.random.default_rng(0).integers(0, 255, (360, 640, 3), np.uint8)
            for shift in range(40):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, shift, 1), format="rgb24")))
            container.mux(stream.encode())
        prepare(listing_of(clip, videos), Path(folder, "out"), "benchmark", None, "yunet", weights, max_skipped=1.0)
    # Not `ru_maxrss`, which is at least the parent's memory at the start of this process.
    print(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[0])


class BenchmarkOptions(Options):
    """What to measure."""

    clip: Path | None = Field(None, description="10 s of 1080p video with a face.")
    detector_weights: str = Field(description="YuNet weights.")
    repeats: int = Field(5, ge=1, description="Repetitions, of which the best counts.")
    copies: int = Field(12, ge=1, description="Videos for the figure of two processes.")
    peak_of: int | None = Field(None, description="Print the peak memory of so many videos alone; used by this script.")


def main(args: BenchmarkOptions) -> None:
    """Measure and print."""
    if args.peak_of:
        return print_peak(args.peak_of, args.detector_weights)
    clip, weights = args.clip, args.detector_weights
    if clip is None:
        sys.exit("benchmark_prepare.py: --clip is needed")

    cv2.setNumThreads(1)
    detector, settings = load_detector("yunet", weights), CropSettings(frames=FRAMES)
    (record,) = listing_of(clip, 1).records
    frames = len(frame_times(clip))

    def crops() -> None:
        made = make_crops(lambda: read_pictures(record, FRAMES), detector, settings)
        assert len(made.rows) == FRAMES, made.lost

    bare, ours = best([lambda: decode(clip), crops], args.repeats, time.perf_counter)
    load = round(os.getloadavg()[0], 1)
    emit("prepare over bare decoding", ours / bare, "<= 1.3", seconds=[round(ours, 3), round(bare, 3)], load=load)

    ours, theirs = best([crops, lambda: opencv_loop(clip, weights)], args.repeats, time.process_time)
    speeds = [round(frames / seconds, 1) for seconds in (ours, theirs)]
    emit("frames/s/core over OpenCV's loop", theirs / ours, "> 1", frames_per_second_per_core=speeds)

    with tempfile.TemporaryDirectory() as folder:
        runs = iter(range(10_000))
        listing = listing_of(clip, args.copies)

        def run(processes: int) -> None:
            output = Path(folder, str(next(runs)))
            prepare(listing, output, "benchmark", settings, "yunet", weights, processes)

        # CPU time excludes waiting for other processes on a busy machine.
        (one, two), work = best([lambda: run(1), lambda: run(2)], max(1, args.repeats // 2), time.perf_counter), []
        for processes in (1, 2):
            before = os.times()
            run(processes)
            work.append(round(sum(os.times()[:4]) - sum(before[:4]), 2))
    load = round(os.getloadavg()[0], 1)
    details = {"seconds": [round(one, 2), round(two, 2)], "cpu_seconds": work, "videos": args.copies}
    details |= {"cores": os.cpu_count(), "load": load}
    emit("one process over two", one / two, ">= 1.8", **details)

    few, many = peak_memory(10, weights), peak_memory(200, weights)
    emit("peak memory of 200 videos over 10", many / few, "<= 1.1", mebibytes=[many // 1024, few // 1024])
    return None


if __name__ == "__main__":
    main(parse_options(BenchmarkOptions, None, __doc__))
