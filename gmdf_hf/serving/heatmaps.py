"""Evidence maps: contribution of each patch of a face crop to the verdict."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import interpolate


def evidence_map(hidden_states: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Contribution of each patch to the verdict: gradient x deviation of its token from the mean token.

    ``m_p = <d (fake - real logit) / d token_p, token_p - mean token>`` at the last block's input: to first order, the
    decrease of the logit difference if the token of patch p were the mean token. (Plain gradient x token does not work
    here: the block applies a LayerNorm, which is invariant to the length of a token, so the product is close to 0.)
    Attention rollout, the common alternative, ignores the classes and the attention values, gives the same map for a
    real and a fake verdict, and needs the slower `eager` attention.

    Args:
        hidden_states: Input of the last block, patches last, shape `(B, 1 + patches, D)`, or map of a convolutional
            network, `(B, D, side, side)`, in the graph of `logits`.
        logits: Logits of real and fake, shape `(B, 2)`.

    Returns:
        Maps of shape `(B, side, side)`, one value per patch: positive is evidence for fake, negative for real, relative
        to the rest of the crop.
    """
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), hidden_states)
    if hidden_states.ndim == 4:
        gradient, hidden_states = (states.flatten(2).transpose(1, 2) for states in (gradient, hidden_states))
    side = math.isqrt(hidden_states.shape[1])
    tokens, gradient = hidden_states[:, -(side**2) :], gradient[:, -(side**2) :]  # without class and register tokens
    patches = (gradient * (tokens - tokens.mean(1, keepdim=True))).sum(-1).detach().float()
    return patches.unflatten(1, (side, side))


def heatmap(evidence: torch.Tensor, size: int) -> torch.Tensor:
    """Scale maps of shape `(B, side, side)` to a largest magnitude of 1 and resize them to `size` pixels a side."""
    strongest = evidence.abs().amax((1, 2), keepdim=True).clamp(min=1e-12)
    return interpolate((evidence / strongest)[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]
