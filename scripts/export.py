"""Export a detector to ONNX, and say what the export and its 8-bit variant cost in accuracy.

    python scripts/export.py --model runs/x/model --output exported
    python scripts/export.py --model runs/x/model --output exported --int8 --domain faces/celebdf

The exported file is the route of an unknown domain: `pixel_values` (batch, 3, side, side) in, `logits` (batch, 2) out.
Threshold, pixel mean and deviation and the domains are in its metadata. `benchmark_predict.py` measures the speed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

try:
    import onnxscript  # noqa: F401

    from gmdf_hf.serving.onnx_export import OnnxDetector, export_onnx, quantize
except ImportError as error:
    sys.exit(f"export.py: package {error.name} is missing: pip install 'gmdf-hf[export]'.")

from gmdf_hf.common.errors import DomainError, UserError
from gmdf_hf.data.dataset import load_domain
from gmdf_hf.evaluation.metrics import binary_metrics
from gmdf_hf.evaluation.scoring import score_domain
from gmdf_hf.modeling import GMDFImageProcessor, GMDFModel


def parser() -> argparse.ArgumentParser:
    """Return the command line of this script."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", required=True, help="folder of a detector, or its name on the hub")
    cli.add_argument("--output", required=True, type=Path, help="folder for model.onnx and model.int8.onnx")
    cli.add_argument("--int8", action="store_true", help="also write a variant with weights of 8 bits")
    cli.add_argument("--domain", help="measure accuracy on the test split of this domain (path, hub id or drawn:name)")
    cli.add_argument("--batch_size", type=int, default=16, help="images at a time for the measurements (16)")
    return cli


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Export, measure and print.

    Returns:
        A row a variant: name, size in bytes, largest difference of logits, and on a domain AUC and accuracy at the
        model's threshold.
    """
    args = parser().parse_args(argv)
    try:
        model = GMDFModel.from_pretrained(args.model).eval()
        processor = GMDFImageProcessor.from_pretrained(args.model)
    except (OSError, ValueError) as error:
        raise UserError(f"The model {args.model!r} cannot be used: {' '.join(str(error).split())}") from error
    args.output.mkdir(parents=True, exist_ok=True)
    variants: dict[str, tuple[torch.nn.Module, Path | None]] = {"PyTorch": (model, None)}
    export_onnx(model, processor, args.output / "model.onnx")
    variants["ONNX"] = (OnnxDetector(args.output / "model.onnx"), args.output / "model.onnx")
    if args.int8:
        quantize(args.output / "model.onnx", args.output / "model.int8.onnx")
        variants["ONNX int8"] = (OnnxDetector(args.output / "model.int8.onnx"), args.output / "model.int8.onnx")
    domain = load_domain("test", "test", args.domain) if args.domain else None
    side = model.config.image_size
    pixels = torch.randn(args.batch_size, 3, side, side, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, (variant, file) in variants.items():
        with torch.no_grad():
            difference = (variant(pixels).logits - model(pixels).logits).abs().max().item()
        row = {"variant": name, "bytes": file.stat().st_size if file else None, "difference": difference}
        if domain is not None:
            scores = score_domain(variant, domain, processor, args.batch_size)[0]
            metrics = binary_metrics(scores["label"].to_numpy(), scores["score"].to_numpy(), model.config.threshold)
            row |= {"auc": metrics.auc, "accuracy": metrics.acc}
        rows.append(row)
    show(rows)
    return rows


def show(rows: list[dict]) -> None:
    """Print the rows as a table."""
    table = Table("variant", "MB", "largest difference", *(["AUC %", "ACC %"] if "auc" in rows[0] else []))
    for row in rows:
        rates = [f"{100 * row[name]:.2f}" for name in ("auc", "accuracy") if name in row]
        table.add_row(
            row["variant"],
            f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "",
            f"{row['difference']:.1e}",
            *rates,
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        main()
    except (UserError, DomainError) as error:
        sys.exit(f"export.py: {error}")
