"""Exported detectors, run by ONNX Runtime or OpenVINO on a CPU with the interface of the model."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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

    Each thread computes images of its own. Threads that share an image wait for each other in every layer: while the
    face detector takes a part of one of two cores, a batch would take 1.0 seconds instead of 0.7.

    Args:
        path: The file.
        dtype: Precision of the layers, float32 or bfloat16, which a processor without units for it computes in float32.
        threads: CPU threads to use.

    Raises:
        ImportError: If OpenVINO is missing.
        RuntimeError: If OpenVINO cannot read the file.
    """

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32, threads: int | None = None) -> None:
        # Without this package OpenVINO does not send its statistics of use.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino
        from openvino.frontend import FrontEndManager

        super().__init__()
        reader = FrontEndManager().load_by_framework("onnx")  # `read_model` tries TensorFlow and others, too
        network = reader.convert(reader.load(str(path)))
        facts = ["framework", WEIGHTS]
        self.weights = json.loads(network.get_rt_info(facts).astype(str)) if network.has_rt_info(facts) else None
        self.threads = threads or torch.get_num_threads()
        settings = {
            "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": self.threads,
        }
        compiled = openvino.Core().compile_model(network, "CPU", settings)
        self.requests = [compiled.create_infer_request() for _ in range(self.threads)]
        self.lock = threading.Lock()

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """Return an object whose `logits` have shape `(B, 2)`."""
        parts = np.array_split(pixel_values.numpy(), min(self.threads, len(pixel_values)))
        running = self.requests[: len(parts)]
        with self.lock:  # a batch takes all threads; another thread's batch waits
            for request, part in zip(running, parts, strict=True):
                request.start_async({INPUT: part})
            for request in running:
                request.wait()
            logits = np.concatenate([request.get_tensor(OUTPUT).data for request in running])
        return SimpleNamespace(logits=torch.from_numpy(logits))
