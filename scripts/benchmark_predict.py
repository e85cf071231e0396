"""How fast a detector is on this machine: plain, compiled, as ONNX, in 8 bits, in OpenVINO, and on whole videos.

    OMP_NUM_THREADS=1 python scripts/benchmark_predict.py --model runs/x/model
    python scripts/benchmark_predict.py --model user/name --videos videos/ --detector_weights yunet.onnx

The variants run alternately, so that other load on the machine affects all of them; the median counts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

try:
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401

    from gmdf_hf.serving.onnx_export import export_onnx, quantize
except ImportError as error:
    sys.exit(f"benchmark_predict.py: package {error.name} is missing: pip install 'gmdf-hf[export]'.")

from gmdf_hf.common.errors import exit_on_error
from gmdf_hf.common.memory import keep_freed_memory
from gmdf_hf.common.options import Options, parse_options
from gmdf_hf.modeling import GMDFImageProcessor, GMDFModel
from gmdf_hf.serving.files import list_files
from gmdf_hf.serving.loading import load_model, load_pipeline
from gmdf_hf.serving.runtimes import OnnxDetector, OpenVinoDetector


class BenchmarkOptions(Options):
    """What to measure."""

    model: str = Field(description="Folder of a detector, or its name on the hub.")
    videos: tuple[str, ...] = Field((), description="Videos or folders of them, scored as `gmdf predict` does.")
    detector_weights: str | None = Field(None, description="Local weights of the face detector.")
    batch_size: int = Field(16, ge=1, description="Faces at a time.")
    rounds: int = Field(5, ge=1, description="Rounds of each variant.")
    seconds: float = Field(2.0, gt=0, description="Length of a round in seconds.")


@torch.no_grad()
def faces_per_second(
    variants: dict[str, Callable], pixel_values: torch.Tensor, rounds: int, seconds: float
) -> dict[str, float]:
    """Faces per second of each variant, median over rounds.

    Args:
        variants: Detectors by name.
        pixel_values: One batch.
        rounds: Number of rounds; every variant runs once per round.
        seconds: Duration of one run of a variant.
    """
    for model in variants.values():
        model(pixel_values)  # warm-up: compilation and caches
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, model in variants.items():
            started, faces = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                model(pixel_values)
                faces += len(pixel_values)
            rates[name].append(faces / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def main(options: BenchmarkOptions) -> dict[str, float]:
    """Measure and print.

    Returns:
        Faces per second by variant, and `videos_per_minute` if there are videos.
    """
    model, console = cast(GMDFModel, load_model(options.model)), Console(width=100)
    side = model.config.image_size
    pixels = torch.randn(options.batch_size, 3, side, side, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        exact, small = Path(folder) / "model.onnx", Path(folder) / "model.int8.onnx"
        export_onnx(model, GMDFImageProcessor.of_size(side), exact)
        quantize(exact, small)
        variants: dict[str, Callable] = {
            "PyTorch": model,
            "compiled": torch.compile(model),
            "ONNX": OnnxDetector(exact),
            "ONNX int8": OnnxDetector(small),
        }
        if find_spec("openvino"):
            variants |= {
                "OpenVINO": OpenVinoDetector(exact),
                "OpenVINO bfloat16": OpenVinoDetector(exact, torch.bfloat16),
            }
        rates = faces_per_second(variants, pixels, options.rounds, options.seconds)
    table = Table(
        "variant",
        "faces/s",
        "speed",
        title=f"{side} px, batches of {options.batch_size}, {torch.get_num_threads()} thread(s)",
    )
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}", f"{rate / rates['PyTorch']:.2f}")
    console.print(table)
    if options.videos:
        detect = load_pipeline(options.model, "yunet", options.detector_weights, options.batch_size)
        files = list(list_files(options.videos))
        started = time.perf_counter()
        results = list(detect((file for file in files), on_error="return"))
        minutes = (time.perf_counter() - started) / 60
        rates["videos_per_minute"] = len(files) / minutes
        faces = sum(len(result["faces"]) for result in results)
        console.print(
            f"{len(files)} videos in {60 * minutes:.1f} s: {len(files) / minutes:.0f} videos a minute, "
            f"{faces} faces found and scored."
        )
    return rates


if __name__ == "__main__":
    keep_freed_memory()  # as `gmdf predict` does
    with exit_on_error("benchmark_predict.py"):
        main(parse_options(BenchmarkOptions, None, __doc__))
