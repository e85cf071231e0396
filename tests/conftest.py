"""Small models, made once, and where the real data are."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import CLIPConfig, CLIPModel

from gmdf_hf import GMDFConfig, GMDFModel

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 98,
}
PROMPT_IDS = [[0, 5, 98], [0, 6, 98]]
DIL_VARIANTS = ["affine", "affine_bias", "cross_attention"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files with long tests first, so that no process is left with one at the end."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
    gc.collect()
    gc.freeze()  # a collection looks at the half million objects of the imported modules otherwise: 0.3 s each


def tiny_config(**fields) -> GMDFConfig:
    settings = {
        "vision_config": VISION,
        "text_config": TEXT,
        "projection_dim": 16,
        "domains": ["a", "b", "c"],
        "expert_bottleneck_size": 8,
        "prompt_size": 8,
        "prompt_ids": PROMPT_IDS,
        "codebook_size": 20,
    }
    return GMDFConfig(**settings | fields)


def redraw_zeros(model: torch.nn.Module, seed: int = 0) -> None:
    """Give weight to all that starts at zero effect: a formula tested at zero is not tested."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def tiny_model(**fields) -> GMDFModel:
    torch.manual_seed(0)
    model = GMDFModel(tiny_config(**fields)).eval()
    redraw_zeros(model)
    return model


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP checkpoint without a tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=16)).save_pretrained(folder)
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of data sets for the test alone, and no accelerator of an earlier run in this process."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real faces and videos, named by GMDF_REAL_DATA."""
    root = os.environ.get("GMDF_REAL_DATA")
    if not root:
        pytest.skip("GMDF_REAL_DATA is not set: no real faces on this machine")
    return Path(root) / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers of transformers' own tests of a model class; one thread in each process of `-n auto`."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that the tests start
        torch.set_num_threads(1)
    for name in ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test"):
        config.addinivalue_line("markers", f"{name}: a marker of transformers")
