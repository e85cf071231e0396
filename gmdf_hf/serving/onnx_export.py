"""Export of a detector to ONNX: pixels to logits, on the aggregated route."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torch.nn.functional import normalize

from gmdf_hf.evaluation.classifier import weights_digest
from gmdf_hf.modeling import GMDFImageProcessor, GMDFModel
from gmdf_hf.serving.runtimes import INPUT, OUTPUT, WEIGHTS


class AggregatedRoute(nn.Module):
    """The part of a detector that processes an image of an unknown domain.

    The class features of that route are equal for all images, so they are stored as one constant matrix, multiplied by
    the temperature. Text tower, text affine and prompt tokens are not part of the export.

    Args:
        model: Detector, in evaluation mode.
    """

    def __init__(self, model: GMDFModel) -> None:
        super().__init__()
        self.model = model
        side = model.config.image_size
        with torch.no_grad():
            text = model(torch.zeros(1, 3, side, side, dtype=model.dtype)).text_embeds[0]
            self.classes = nn.Buffer((model.logit_scale.exp() * text).T.contiguous())  # (P, 2)
        self.bias = float(getattr(model, "logit_bias", 0.0))  # of SigLIP

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits of real and fake, shape `(B, 2)`, for images of shape `(B, 3, side, side)`."""
        vision, _ = self.model.encode_images(pixel_values)
        return normalize(self.model.visual_projection(vision.pooler_output), dim=-1) @ self.classes + self.bias


def export_program(model: GMDFModel) -> torch.export.ExportedProgram:
    """Export the aggregated route with `torch.export`, for any number of images."""
    side = model.config.image_size
    example = (torch.zeros(2, 3, side, side, dtype=model.dtype),)
    return torch.export.export(
        AggregatedRoute(model.eval()), example, dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}}
    )


def export_onnx(model: GMDFModel, processor: GMDFImageProcessor, path: Path) -> None:
    """Write a detector as one ONNX file; metadata: threshold, domains, pixel normalisation, hash of the weights.

    Args:
        model: Detector in single precision.
        processor: Its image processor.
        path: File to write.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # messages on unused torchvision operators
    program = torch.onnx.export(
        export_program(model), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program.")
    program.save(path)
    written = onnx.load(path)
    facts = {
        "threshold": model.config.threshold,
        "labels": ["real", "fake"],
        "domains": model.config.domains,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
        "image_size": model.config.image_size,
        WEIGHTS: weights_digest(model),
    }
    for name, value in facts.items():
        written.metadata_props.add(key=name, value=json.dumps(value))
    onnx.save(written, path)


def quantize(path: Path, output: Path) -> None:
    """Write a variant with 8-bit weights and dynamically quantised activations, which needs no calibration data.

    Args:
        path: File that `export_onnx` wrote.
        output: File to write.
    """
    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    # The patch embedding, a convolution, is not quantised: later layers cannot recover information lost there.
    # The experts' up projections are one batched product, of which ONNX Runtime has no quantised form.
    graph = onnx.load(str(prepared)).graph
    batched = {weight.name for weight in graph.initializer if len(weight.dims) > 2}
    quantize_dynamic(
        prepared,
        output,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=[node.name for node in graph.node if batched & set(node.input)],
    )
    prepared.unlink()
