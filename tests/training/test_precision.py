"""Precision of a run: `auto`, attention that needs half precision, validation in the precision of training."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from gmdf_hf.common.errors import UserError
from gmdf_hf.scripts import meta_train
from gmdf_hf.training import precision
from gmdf_hf.training.precision import resolve_precision, validation_dtype
from tests.scripts.test_meta_train import miniature

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, "no"), (torch.bfloat16, "bf16")])
def test_auto_is_recorded_as_what_it_was(tmp_path, monkeypatch, dtype, expected):
    monkeypatch.setattr(precision, "scoring_dtype", lambda *_: dtype)
    config = miniature(tmp_path, mixed_precision="auto", epochs=4)
    assert resolve_precision(config) == config.model_copy(update={"mixed_precision": expected})
    assert resolve_precision(config.model_copy(update={"mixed_precision": "fp16"})).mixed_precision == "fp16"


def test_a_network_with_batch_normalisation_is_not_scored_in_bfloat16():
    normalised, plain = torch.nn.BatchNorm2d(4), torch.nn.LayerNorm(4)
    assert validation_dtype("bf16", normalised) == torch.float32
    assert validation_dtype("bf16", plain) == torch.bfloat16
    assert validation_dtype("fp16", normalised) == torch.float16
    assert validation_dtype("no", plain) == torch.float32


def test_flash_attention_in_single_precision_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="flash_attention_2' computes in half precision only; found mixed_precision no"):
        meta_train.main(miniature(tmp_path, attn_implementation="flash_attention_2"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_attention_of_half_precision_works_in_validation(tmp_path):
    """Flash attention needs a GPU; this stand-in refuses what flash attention refuses."""
    precisions = set()

    def half_only(module, query, key, value, *arguments, **options):
        precisions.add(query.dtype)
        return sdpa_attention_forward(module, query, key, value, *arguments, **options)

    AttentionInterface.register("half_only", half_only)
    AttentionMaskInterface.register("half_only", sdpa_mask)
    fields = {"attn_implementation": "half_only", "mixed_precision": "bf16", "epochs": 1, "max_steps": 1}
    results = meta_train.main(miniature(tmp_path, **fields))
    assert precisions == {torch.bfloat16}
    assert results["dtype"] == "bfloat16"
