import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil

from gmdf_hf import GMDFImageProcessor


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((240, 180))


def test_pixels_are_those_of_clip(picture):
    ours = GMDFImageProcessor.of_size(64)(images=picture, return_tensors="pt")["pixel_values"]
    clip = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=64)(images=picture, return_tensors="pt")
    assert ours.shape == (1, 3, 64, 64)
    torch.testing.assert_close(ours, clip["pixel_values"])


def test_saves_and_loads_with_its_code(tmp_path, picture):
    processor = GMDFImageProcessor.of_size(32)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is GMDFImageProcessor
    assert torch.equal(
        loaded(picture, return_tensors="pt")["pixel_values"], processor(picture, return_tensors="pt")["pixel_values"]
    )
    assert {path.name for path in tmp_path.glob("*.py")} == {"image_processing_gmdf.py"}
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["auto_map"]["AutoImageProcessor"] == "image_processing_gmdf.GMDFImageProcessor"
