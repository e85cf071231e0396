"""Half precision of scoring: which is chosen, and that the class decision stays in single precision."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from gmdf_hf.evaluation import precision
from gmdf_hf.evaluation.precision import scoring_dtype, scoring_in
from tests.conftest import VISION, tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**VISION, num_labels=2)).eval()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_on_a_cpu_needs_units_for_bfloat16(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert scoring_dtype("auto", CPU) == expected
    assert scoring_dtype("float16", CPU) == torch.float16


def test_auto_is_single_precision_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert scoring_dtype("auto", CPU) == torch.float32
    assert scoring_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_cuda_is_what_the_card_has(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert scoring_dtype("auto", CUDA) == expected


def test_auto_gives_no_bfloat16_to_batch_normalisation(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    normalised = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    assert scoring_dtype("auto", CPU, normalised) == torch.float32
    assert scoring_dtype("auto", CUDA, normalised) == torch.float16
    assert scoring_dtype("bfloat16", CPU, normalised) == torch.bfloat16
    assert scoring_dtype("auto", CPU, vit()) == scoring_dtype("auto", CUDA, vit()) == torch.bfloat16


@pytest.mark.parametrize("make", [tiny_model, vit])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_and_decides_in_single(make, dtype):
    model = make()
    pixels = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model(pixel_values=pixels).logits
        with scoring_in(model, dtype):
            half = model(pixel_values=pixels).logits
        assert torch.equal(model(pixel_values=pixels).logits, exact)  # nothing is left of the block
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half.softmax(-1), exact.softmax(-1), atol=0.02, rtol=0)
    # Logits rounded to half precision have few values; a tie of two images is a tie in the ROC.
    assert not torch.equal(half.to(dtype).float(), half)
    assert len((half[:, 1] - half[:, 0]).unique()) == len(half)


def test_single_precision_changes_no_bit():
    model, pixels = tiny_model(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        exact = model(pixel_values=pixels).logits
        with scoring_in(model, torch.float32):
            assert torch.equal(model(pixel_values=pixels).logits, exact)


def test_names_are_those_of_the_options():
    for name in ("float32", "bfloat16", "float16"):
        assert precision.name_of(scoring_dtype(name, CPU)) == name
