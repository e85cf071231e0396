"""Precision of a training run, its validation included."""

from __future__ import annotations

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn

from gmdf_hf.common.errors import UserError
from gmdf_hf.evaluation.precision import has_batch_norm, scoring_dtype
from gmdf_hf.training.config import TrainConfig

MIXED_PRECISION = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # names of accelerate


def resolve_precision(config: TrainConfig) -> TrainConfig:
    """Replace `mixed_precision: auto` by what the device is good at, so that the run records it and resumes in it.

    Raises:
        UserError: If the attention needs half precision and the run has single.
    """
    if config.mixed_precision == "auto":
        # The device that accelerate will choose; making an `Accelerator` here would fix its precision.
        has_card = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
        dtype = scoring_dtype("auto", torch.device("cuda" if has_card else "cpu"))
        found = next(name for name, value in MIXED_PRECISION.items() if value == dtype)
        config = config.model_copy(update={"mixed_precision": found})
    if config.attn_implementation.startswith("flash") and config.mixed_precision == "no":
        raise UserError(
            f"attn_implementation {config.attn_implementation!r} computes in half precision only; found "
            "mixed_precision no, expected bf16 or fp16."
        )
    return config


def validation_dtype(mixed_precision: str, model: nn.Module) -> torch.dtype:
    """Data type in which a run scores: that of its training; float32 for bfloat16 beside batch normalisation."""
    dtype = MIXED_PRECISION[mixed_precision]
    return torch.float32 if dtype == torch.bfloat16 and has_batch_norm(model) else dtype


def attention_by_tower(attention: str, model_type: str) -> str | dict[str, str]:
    """Attention of a backbone's towers, as transformers takes it.

    A text tower encodes its few sentences in single precision, which flash attention does not compute.
    """
    if attention in ("sdpa", "eager") or model_type not in ("clip", "siglip", "siglip2"):
        return attention
    return {"": attention, "vision_config": attention, "text_config": "sdpa"}
