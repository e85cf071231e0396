"""Export a detector to ONNX, and say what the export and its 8-bit variant cost in accuracy.

    python scripts/export.py --model runs/x/model --output exported
    python scripts/export.py --model runs/x/model --output exported --int8 --domain faces/celebdf

The export contains the route of an unknown domain: `pixel_values` (batch, 3, side, side) in, `logits` (batch, 2) out.
Its metadata contain the threshold, the pixel mean and deviation, and the domains. `benchmark_predict.py` measures the
speed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

try:
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401

    from gmdf_hf.serving.onnx_export import export_onnx, quantize
except ImportError as error:
    sys.exit(f"export.py: package {error.name} is missing: pip install 'gmdf-hf[export]'.")

from gmdf_hf.common.errors import UserError, exit_on_error
from gmdf_hf.common.options import Options, parse_options
from gmdf_hf.data.dataset import load_domain
from gmdf_hf.evaluation.metrics import binary_metrics
from gmdf_hf.evaluation.scoring import score_domain
from gmdf_hf.modeling import GMDFImageProcessor, GMDFModel
from gmdf_hf.serving.runtimes import OnnxDetector


class ExportOptions(Options):
    """What to export, and what to measure."""

    model: str = Field(description="Folder of a detector, or its name on the hub.")
    output: Path = Field(description="Folder for model.onnx and model.int8.onnx.")
    int8: bool = Field(False, description="Also write a variant with weights of 8 bits.")
    domain: str | None = Field(
        None, description="Measure accuracy on the test split of this domain (path, hub id or drawn:name)."
    )
    batch_size: int = Field(16, ge=1, description="Images at a time for the measurements.")


def main(options: ExportOptions) -> list[dict]:
    """Export, measure and print.

    Returns:
        One row per variant: name, size in bytes, largest difference of logits, and, if a domain is given, AUC and
        accuracy at the model's threshold.
    """
    try:
        model = GMDFModel.from_pretrained(options.model).eval()
        processor = GMDFImageProcessor.from_pretrained(options.model)
    except (OSError, ValueError) as error:
        raise UserError(f"The model {options.model!r} cannot be used: {' '.join(str(error).split())}") from error
    options.output.mkdir(parents=True, exist_ok=True)
    variants: dict[str, tuple[torch.nn.Module, Path | None]] = {"PyTorch": (model, None)}
    export_onnx(model, processor, options.output / "model.onnx")
    variants["ONNX"] = (OnnxDetector(options.output / "model.onnx"), options.output / "model.onnx")
    if options.int8:
        quantize(options.output / "model.onnx", options.output / "model.int8.onnx")
        variants["ONNX int8"] = (OnnxDetector(options.output / "model.int8.onnx"), options.output / "model.int8.onnx")
    domain = load_domain("test", "test", options.domain) if options.domain else None
    side = model.config.image_size
    pixels = torch.randn(options.batch_size, 3, side, side, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, (variant, file) in variants.items():
        with torch.no_grad():
            difference = (variant(pixels).logits - model(pixels).logits).abs().max().item()
        row = {"variant": name, "bytes": file.stat().st_size if file else None, "difference": difference}
        if domain is not None:
            scores = score_domain(variant, domain, processor, options.batch_size)[0]
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


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Export with the options of the command line."""
    options = parse_options(ExportOptions, arguments, __doc__, program)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with exit_on_error(program or "export.py"):
        main(options)


if __name__ == "__main__":
    run()
