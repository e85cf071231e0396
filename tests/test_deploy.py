"""The handler for Inference Endpoints, and the Dockerfile's command."""

import base64
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.serving import loading
from gmdf_hf.training.checkpoint import save_model
from tests.conftest import tiny_model

DEPLOY = Path(__file__).parents[1] / "deploy"


@pytest.fixture
def handler(tmp_path, monkeypatch):
    save_model(tmp_path / "model", tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32), slim=True)
    spec = importlib.util.spec_from_file_location("handler", DEPLOY / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load_pipeline", lambda path: loading.load_pipeline(path, "none", device="cpu"))
    return module.EndpointHandler(str(tmp_path / "model"))


def test_the_handler_takes_bytes_base64_and_refuses_the_rest(handler):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    found = handler({"inputs": buffer.getvalue()})
    assert found["error"] is None and 0 <= found["score"] <= 1 and found["training_data"]
    text = base64.b64encode(buffer.getvalue()).decode()
    assert handler({"inputs": text, "parameters": {"threshold": 0.0, "secret": 1}})["label"] == "fake"
    assert "public internet" in handler({"inputs": "http://127.0.0.1/a.png"})["error"]
    assert "base64" in handler({"inputs": "no base64!"})["error"] and "found NoneType" in handler({})["error"]
    broken = handler({"inputs": b"not a picture"})
    assert "/tmp" not in broken["error"] and broken["score"] is None


def test_the_dockerfile_starts_the_service():
    text = (DEPLOY / "Dockerfile").read_text()
    assert "exec gmdf serve" in text and "USER gmdf" in text and "constraints.txt" in text
