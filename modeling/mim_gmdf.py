"""Masked-image modelling: the head that predicts masked patches (Eq. 7, decision D7)."""

from __future__ import annotations

import torch
from torch import nn


class MaskedImageHead(nn.Module):
    """Mask token, classifier over the visual codes, and pixel predictor.

    Args:
        hidden_size: Token width D.
        codebook_size: Number of codes T.
        patch_size: Side of a patch in pixels.
        eps: Epsilon of the LayerNorm before both predictors.
        mask_size: Size of the mask token, if not D: 3 if patches are masked in pixel space.
    """

    def __init__(self, hidden_size: int, codebook_size: int, patch_size: int, eps: float, mask_size: int | None = None):
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(mask_size or hidden_size))
        self.layer_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.code_classifier = nn.Linear(hidden_size, codebook_size)
        self.pixel_predictor = nn.Linear(hidden_size, 3 * patch_size**2)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict masked patches from their tokens.

        Args:
            hidden_states: Tokens of the masked patches, shape `(K, D)`.

        Returns:
            Code scores of shape `(K, T)` and pixels of shape `(K, 3 * patch_size**2)`, channel-major.
        """
        hidden_states = self.layer_norm(hidden_states)
        return self.code_classifier(hidden_states), self.pixel_predictor(hidden_states)
