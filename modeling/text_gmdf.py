"""The per-domain side of the text features (Fig. 2, "dynamic text feature affine")."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize


class DomainTextAffine(nn.Module):
    """Gain and bias of each domain on the two class features, made from its prompt vector p_n; the identity at first.

    ``t'_{n,c} = normalize(t_c * (1 + g_{n,c}(p_n)) + b_{n,c}(p_n))``

    Args:
        projection_dim: Width P of the text features.
        num_experts: Number of source domains E.
        prompt_size: Numbers M in a prompt vector.
    """

    def __init__(self, projection_dim: int, num_experts: int, prompt_size: int):
        super().__init__()
        self.gain_weight = nn.Parameter(torch.empty(num_experts, 2, projection_dim, prompt_size))
        self.shift_weight = nn.Parameter(torch.empty(num_experts, 2, projection_dim, prompt_size))

    def forward(self, text_embeds: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Every domain's view of the class features.

        Args:
            text_embeds: Unit features of the real and the fake sentence, shape `(..., 2, P)`.
            prompts: Prompt vectors p, shape `(E, M)`.

        Returns:
            Unit features of shape `(..., E, 2, P)`.
        """
        gain = torch.einsum("ecpm,em->ecp", self.gain_weight, prompts)
        shift = torch.einsum("ecpm,em->ecp", self.shift_weight, prompts)
        return normalize(text_embeds.unsqueeze(-3) * (1 + gain) + shift, dim=-1)
