"""Precision in which a detector scores images: its layers in half precision, its class decision in single."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gmdf_hf.common.options import Precision

# Sapphire Rapids and Cooper Lake or Zen 4; other processors emulate bfloat16, which takes longer than single precision.
BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")


def scoring_dtype(precision: Precision, device: torch.device, model: nn.Module | None = None) -> torch.dtype:
    """Data type of a precision on a device.

    `auto` is bfloat16 where the device has units for it, float16 on CUDA cards without, and float32 on all other
    devices. Networks with batch normalisation do not get bfloat16: the scores of an EfficientNet-Lite0 on real faces
    move by 0.02 in the mean and its AUC by 0.1 to 0.3 points; in float16 by 0.002 and 0.01 points.

    Args:
        precision: Name of a data type, or `auto`.
        device: Device of the model.
        model: Detector; None if it is not known yet.
    """
    if precision != "auto":
        return getattr(torch, precision)
    batch_norm = model is not None and has_batch_norm(model)
    if device.type == "cuda":
        units = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if units and not batch_norm else torch.float16
    units = device.type == "cpu" and has_bfloat16_units()
    return torch.bfloat16 if units and not batch_norm else torch.float32


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a network has batch normalisation, next to which bfloat16 is too coarse for scores."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def has_bfloat16_units() -> bool:
    """Whether this processor multiplies matrices in bfloat16; false if this version of torch cannot tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in BFLOAT16_UNITS)


def name_of(dtype: torch.dtype) -> str:
    """Name of a data type as in `Precision`."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def scoring_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Run a detector in a data type inside the block; its weights are unchanged.

    The class decision stays in single precision: in half precision many images would have the same score (decision
    D19). A GM-DF does so itself; of other classifiers the linear layer with two outputs is computed again.

    Args:
        model: Detector whose output has `logits` of shape `(B, 2)`.
        dtype: See `scoring_dtype`.
    """
    device = next(model.parameters()).device
    decisions = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 2]
    hooks = [module.register_forward_hook(_in_single_precision) for module in decisions[-1:]]
    try:
        # Without autocast's cache, which would hide a change of the weights inside the block.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _in_single_precision(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    assert isinstance(layer, nn.Linear)
    bias = None if layer.bias is None else layer.bias.float()
    with torch.autocast(inputs[0].device.type, enabled=False):
        return nn.functional.linear(inputs[0].float(), layer.weight.float(), bias)
