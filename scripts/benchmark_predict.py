"""How fast a detector is on this machine: plain, compiled, as ONNX and in 8 bits, and on whole videos.

    OMP_NUM_THREADS=1 python scripts/benchmark_predict.py --model runs/x/model
    python scripts/benchmark_predict.py --model user/name --videos videos/ --detector_weights yunet.onnx

Rounds of all variants take turns, so that whatever else the machine does falls on each; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

try:
    import onnxscript  # noqa: F401

    from gmdf_hf.serving.onnx_export import OnnxDetector, export_onnx, quantize
except ImportError as error:
    sys.exit(f"benchmark_predict.py: package {error.name} is missing: pip install 'gmdf-hf[export]'.")

from gmdf_hf.common.errors import UserError
from gmdf_hf.modeling import GMDFImageProcessor
from gmdf_hf.scripts.gmdf import list_files, load_model, load_pipeline


def parser() -> argparse.ArgumentParser:
    """Return the command line of this script."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", required=True, help="folder of a detector, or its name on the hub")
    cli.add_argument("--videos", nargs="*", default=[], help="videos or folders of them, for `gmdf predict`'s way")
    cli.add_argument("--detector_weights", help="local weights of the face detector")
    cli.add_argument("--batch_size", type=int, default=16, help="faces at a time (16)")
    cli.add_argument("--rounds", type=int, default=5, help="rounds of each variant (5)")
    cli.add_argument("--seconds", type=float, default=2.0, help="length of a round (2)")
    return cli


@torch.no_grad()
def faces_per_second(
    variants: dict[str, Callable], pixel_values: torch.Tensor, rounds: int, seconds: float
) -> dict[str, float]:
    """Median over rounds of the faces that each variant scores in a second.

    Args:
        variants: Detectors by name.
        pixel_values: One batch.
        rounds: Number of rounds; the variants take turns in each.
        seconds: Length of a variant's turn.
    """
    for model in variants.values():
        model(pixel_values)  # compilation, and caches
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, model in variants.items():
            started, faces = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                model(pixel_values)
                faces += len(pixel_values)
            rates[name].append(faces / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Measure and print.

    Returns:
        Faces a second by variant, and `videos_per_minute` if there were videos.
    """
    args = parser().parse_args(argv)
    model, console = load_model(args.model), Console(width=100)
    side = model.config.image_size
    pixels = torch.randn(args.batch_size, 3, side, side, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        exact, small = Path(folder) / "model.onnx", Path(folder) / "model.int8.onnx"
        export_onnx(model, GMDFImageProcessor.of_size(side), exact)
        quantize(exact, small)
        variants = {
            "PyTorch": model,
            "compiled": torch.compile(model),
            "ONNX": OnnxDetector(exact),
            "ONNX int8": OnnxDetector(small),
        }
        rates = faces_per_second(variants, pixels, args.rounds, args.seconds)
    table = Table(
        "variant",
        "faces/s",
        "speed",
        title=f"{side} px, batches of {args.batch_size}, {torch.get_num_threads()} thread(s)",
    )
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}", f"{rate / rates['PyTorch']:.2f}")
    console.print(table)
    if args.videos:
        detect = load_pipeline(args.model, "yunet", args.detector_weights, args.batch_size, None)
        files = list(list_files(args.videos))
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
    try:
        main()
    except UserError as error:
        sys.exit(f"benchmark_predict.py: {error}")
