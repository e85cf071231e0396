"""The per-domain side of the text features (Fig. 2, "dynamic text feature affine")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import normalize


class DomainTextAffine(nn.Module):
    """Gain and bias of each domain on the two class features, made from its prompt vector p_n; the identity at first.

    ``t'_{n,c} = normalize(t_c * (1 + g_{n,c}(p_n)) + s b_{n,c}(p_n))``

    Decision D17: s is one over the temperature of the loaded CLIP, by which logits multiply what the shift adds;
    without it one inner step at a temperature of 100 raises the loss several times.

    Decision D5: the class features of the aggregated route are the normalised mean over the active domains.

    Args:
        projection_dim: Width P of the text features.
        num_experts: Number of source domains E.
        prompt_size: Numbers M in a prompt vector.
        shift_scale: Factor s on the shift.
    """

    def __init__(self, projection_dim: int, num_experts: int, prompt_size: int, shift_scale: float):
        super().__init__()
        self.shift_scale = shift_scale
        self.gain_weight = nn.Parameter(torch.empty(num_experts, 2, projection_dim, prompt_size))
        self.shift_weight = nn.Parameter(torch.empty(num_experts, 2, projection_dim, prompt_size))

    def forward(
        self,
        text_embeds: torch.Tensor,
        prompts: torch.Tensor,
        domain_ids: torch.LongTensor | None = None,
        active_experts: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """The class features that images are compared with, in single precision at least (decision D19).

        Args:
            text_embeds: Unit features of the real and the fake sentence, shape `(2, P)` or `(B, 2, P)`.
            prompts: Prompt vectors p, shape `(E, M)`.
            domain_ids: Domain of each image, shape `(B,)`; None aggregates the active ones.
            active_experts: Domains that the aggregated route uses; None for all.

        Returns:
            Unit features of shape `(B, 2, P)`; the aggregated route of one sentence pair gives `(1, 2, P)`.
        """
        text_embeds, prompts = at_least_single(text_embeds), at_least_single(prompts)
        gain = torch.einsum("ecpm,em->ecp", self.gain_weight.to(prompts), prompts)
        shift = torch.einsum("ecpm,em->ecp", self.shift_weight.to(prompts), prompts)
        views = normalize(text_embeds.unsqueeze(-3) * (1 + gain) + self.shift_scale * shift, dim=-1)
        views = views.view(-1, *views.shape[-3:])  # (1 or B, E, 2, P)
        if domain_ids is not None:
            views = views.expand(len(domain_ids), -1, -1, -1)
            return views[torch.arange(len(views), device=views.device), domain_ids]
        if active_experts is not None:
            views = views[:, torch.as_tensor(active_experts, device=views.device)]
        return normalize(views.mean(1), dim=-1)


def at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in single precision if it is in half precision, unchanged otherwise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
