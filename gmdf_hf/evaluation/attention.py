"""Where a vision transformer looks: the attention of its class token (Fig. 8)."""

from __future__ import annotations

import math

import torch


@torch.no_grad()
def attention_maps(model: torch.nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the class token to the patches, of the last block and by rollout over all blocks.

    Rollout (Abnar and Zuidema, 2020) multiplies the blocks' attention matrices, each averaged over heads and with the
    residual connection: ``(A + I) / 2``.

    Args:
        model: A vision transformer whose first token is its class token; its attention is switched to `eager` and back,
            because no other implementation gives the weights.
        pixel_values: Shape `(B, 3, H, W)`.

    Returns:
        Two tensors of shape `(B, side, side)`, `side**2` being the number of patches; each map sums to what the class
        token gives to patches.

    Raises:
        ValueError: If the model gives no attention, or its tokens are not a square of patches after one class token.
    """
    before = model.config._attn_implementation
    model.eval()
    model.set_attn_implementation("eager")
    try:
        attentions = getattr(model(pixel_values=pixel_values, output_attentions=True), "attentions", None)
    finally:
        model.set_attn_implementation(before)
    if not attentions:
        raise ValueError(f"{type(model).__name__} gives no attention weights: it is no transformer with a class token.")
    tokens = attentions[0].shape[-1]
    side = math.isqrt(tokens - 1)
    if side**2 != tokens - 1:
        raise ValueError(f"A class token and a square of patches are needed, found {tokens} tokens.")
    means = [attention.float().mean(1) for attention in attentions]
    rollout = torch.eye(tokens, device=pixel_values.device).expand(len(pixel_values), -1, -1)
    for mean in means:
        rollout = (mean @ rollout + rollout) / 2
    return tuple(whole[:, 0, 1:].unflatten(-1, (side, side)).cpu() for whole in (means[-1], rollout))
