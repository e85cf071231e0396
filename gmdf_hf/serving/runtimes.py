"""Exported detectors, run by ONNX Runtime or OpenVINO on a CPU with the interface of the model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

INPUT, OUTPUT = "pixel_values", "logits"
WEIGHTS = "weights"  # metadata entry: hash of the exported model's weights


class ExportedDetector(nn.Module):
    """An exported detector with the interface of the model for scoring (see `score_domain`).

    Attributes:
        weights: Hash of the exported model's weights (`weights_digest`); None in files of earlier versions.
    """

    weights: str | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("place", nn.Parameter(torch.empty(0)))  # makes `device` return `cpu`


class OnnxDetector(ExportedDetector):
    """A file of `export_onnx` or `quantize` in ONNX Runtime.

    Args:
        path: The file.
        threads: CPU threads to use.

    Raises:
        ImportError: If ONNX Runtime is missing.
        Exception: What ONNX Runtime raises for a file that it cannot read.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.weights = json.loads(self.session.get_modelmeta().custom_metadata_map.get(WEIGHTS, "null"))

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """Return an object whose `logits` have shape `(B, 2)`."""
        (logits,) = self.session.run([OUTPUT], {INPUT: pixel_values.numpy()})
        return SimpleNamespace(logits=torch.from_numpy(logits))


class OpenVinoDetector(ExportedDetector):
    """A file of `export_onnx` in OpenVINO.

    Args:
        path: The file.
        dtype: Precision of the layers, float32 or bfloat16, which a processor without units for it computes in float32.
        threads: CPU threads to use.

    Raises:
        ImportError: If OpenVINO is missing.
        RuntimeError: If OpenVINO cannot read the file.
    """

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32, threads: int | None = None) -> None:
        import openvino
        from openvino.frontend import FrontEndManager

        super().__init__()
        reader = FrontEndManager().load_by_framework("onnx")  # `read_model` tries TensorFlow and others, too
        network = reader.convert(reader.load(str(path)))
        facts = ["framework", WEIGHTS]
        self.weights = json.loads(network.get_rt_info(facts).astype(str)) if network.has_rt_info(facts) else None
        settings = {
            "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype],
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch, as in the other runtimes
        }
        self.network = openvino.Core().compile_model(network, "CPU", settings)

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """Return an object whose `logits` have shape `(B, 2)`."""
        # A request of its own for each call: calls of several threads may overlap.
        logits = self.network.infer_new_request({INPUT: pixel_values.numpy()})[OUTPUT]
        return SimpleNamespace(logits=torch.from_numpy(logits.copy()))
