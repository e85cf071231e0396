"""Attention maps of the class token of a vision transformer (Fig. 8)."""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def attention_maps(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention from the class token to the patches: last block, and rollout over all blocks.

    Rollout (Abnar and Zuidema, 2020) multiplies the blocks' attention matrices, each averaged over heads and with the
    residual connection: ``(A + I) / 2``.

    Args:
        model: Vision transformer with the class token first. Its attention implementation is switched to `eager` for
            the call, because no other one returns the weights.
        pixel_values: Shape `(B, 3, H, W)`.

    Returns:
        Two tensors of shape `(B, side, side)` with `side**2` patches: last block and rollout. Each map sums to the
        attention that the class token gives to patches.

    Raises:
        ValueError: If the model returns no attention, or its tokens are not one class token and a square of patches.
    """
    before = model.config._attn_implementation
    model.eval()
    model.set_attn_implementation("eager")
    try:
        attentions = getattr(model(pixel_values=pixel_values, output_attentions=True), "attentions", None)
    finally:
        model.set_attn_implementation(before)
    if not attentions:
        raise ValueError(f"{type(model).__name__} returns no attention weights; use a transformer with a class token.")
    tokens = attentions[0].shape[-1]
    side = math.isqrt(tokens - 1)
    if side**2 != tokens - 1:
        raise ValueError(f"Expected one class token and a square of patches, found {tokens} tokens.")
    means = [attention.float().mean(1) for attention in attentions]
    rollout = torch.eye(tokens, device=pixel_values.device).expand(len(pixel_values), -1, -1)
    for mean in means:
        rollout = (mean @ rollout + rollout) / 2
    last, over_all = (whole[:, 0, 1:].unflatten(-1, (side, side)).cpu() for whole in (means[-1], rollout))
    return last, over_all
