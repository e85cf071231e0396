"""Which parts of a face crop speak for `fake`."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import interpolate


def evidence_map(hidden_states: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Share of each patch in the verdict: gradient x what its token says beyond the average patch's.

    ``m_p = <d (fake - real logit) / d token_p, token_p - mean token>`` at the last block's input: to first order, what
    the difference of the logits would lose if patch p were like the rest of the crop. (Plain gradient x token is no
    choice here: the block reads its patches through a LayerNorm, to which the length of a token is nothing, so that
    product is close to 0.) Attention rollout, the other common choice, knows neither the classes nor the values that
    attention carries, gives the same map for a real and a fake verdict, and needs the slower `eager` attention.

    Args:
        hidden_states: Input of the last block, patches last, shape `(B, 1 + patches, D)`, or map of a convolutional
            network, `(B, D, side, side)`, in the graph of `logits`.
        logits: Of real and fake, shape `(B, 2)`.

    Returns:
        Maps of shape `(B, side, side)`, one number a patch: above 0 speaks for fake, below for real, compared with the
        rest of the crop.
    """
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), hidden_states)
    if hidden_states.ndim == 4:
        gradient, hidden_states = (states.flatten(2).transpose(1, 2) for states in (gradient, hidden_states))
    side = math.isqrt(hidden_states.shape[1])
    tokens, gradient = hidden_states[:, -(side**2) :], gradient[:, -(side**2) :]  # without class and register tokens
    patches = (gradient * (tokens - tokens.mean(1, keepdim=True))).sum(-1).detach().float()
    return patches.unflatten(1, (side, side))


def heatmap(evidence: torch.Tensor, size: int) -> torch.Tensor:
    """Bring maps of shape `(B, side, side)` to `size` pixels a side and to [-1, 1]; each one's strongest patch is 1."""
    strongest = evidence.abs().amax((1, 2), keepdim=True).clamp(min=1e-12)
    return interpolate((evidence / strongest)[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]
