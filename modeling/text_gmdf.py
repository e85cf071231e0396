"""The text side: features of the two class sentences, and the per-domain affine on them (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import CLIPTextModel


class DomainTextAffine(nn.Module):
    """Gain and bias of each domain on the two class features, computed from its prompt vector p_n; initially identity.

    ``t'_{n,c} = normalize(t_c * (1 + g_{n,c}(p_n)) + s b_{n,c}(p_n))``

    Decision D17: s is the reciprocal of the loaded CLIP's temperature, because the temperature multiplies the shift in
    the logits; without s, one inner step at a temperature of 100 raises the loss several times.

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
        domain_ids: torch.Tensor | None = None,
        active_experts: torch.Tensor | Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Return the class features that images are compared with, in single precision or higher (decision D19).

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


T = TypeVar("T", bound="ClassSentencesMixin")


class ClassSentencesMixin(nn.Module):
    """Class features of a `GMDFModel`: computed once and kept in `prompt_embeds` (decision D4)."""

    config: Any
    text_model: nn.Module
    text_projection: nn.Module
    prompt_embeds: torch.Tensor
    _prompt_embeds_stale: bool

    @property
    def has_text_tower(self) -> bool:
        """Whether class sentences can be encoded: false in the slim form and with an image-only backbone."""
        return self.config.text_config is not None and not self.config.slim

    def _make_class_features(self, config: Any) -> None:
        """Make the stored features of the two classes, and the text tower that encodes them."""
        self.register_buffer("prompt_embeds", torch.zeros(2, config.projection_dim))
        if self.has_text_tower:
            self.text_model = CLIPTextModel._from_config(config.text)
            self.text_projection = nn.Linear(config.text.hidden_size, config.projection_dim, bias=False)

    def _freeze_text_tower(self) -> None:
        """Freeze the text tower; users may unfreeze it (decision D4)."""
        for part in (self.text_model, self.text_projection) if self.has_text_tower else ():
            part.requires_grad_(False)

    def encode_prompts(self, prompt_ids: torch.Tensor) -> torch.Tensor:
        """Encode class sentences with the text tower as unit features.

        Args:
            prompt_ids: Token ids of shape `(..., 2, length)`.

        Returns:
            Features of shape `(..., 2, P)`.

        Raises:
            ValueError: If this is the slim form, which has no text tower.
        """
        if self.config.slim:
            raise ValueError("The slim form of a checkpoint has no text tower: load the full form to encode prompts.")
        pooled = self.text_model(prompt_ids.flatten(0, -2)).pooler_output
        return normalize(self.text_projection(pooled), dim=-1).unflatten(0, prompt_ids.shape[:-1])

    @torch.no_grad()
    def update_prompt_embeds(self) -> None:
        """Recompute the stored class features; needed only after a manual change of the text tower's weights."""
        ids = torch.tensor(self.config.prompt_ids, device=self.prompt_embeds.device)
        self.prompt_embeds.copy_(self.encode_prompts(ids))
        self._prompt_embeds_stale = False

    def train(self: T, mode: bool = True) -> T:
        """Switch between training and evaluation; the class features are recomputed at the next use."""
        self._prompt_embeds_stale = self.has_text_tower
        return super().train(mode)

    def class_features(self) -> torch.Tensor:
        """Unit features of the two class sentences, shape `(2, P)`: stored, or with gradient if the tower trains."""
        if self.has_text_tower:
            # Check all weights of the tower: it may be partly unfrozen, or adapted by LoRA.
            trains = any(p.requires_grad for part in (self.text_model, self.text_projection) for p in part.parameters())
            if torch.is_grad_enabled() and trains:
                return self.encode_prompts(torch.tensor(self.config.prompt_ids, device=self.prompt_embeds.device))
            if self._prompt_embeds_stale:
                self.update_prompt_embeds()
        return self.prompt_embeds


def mark_stale(model: ClassSentencesMixin, *_: object) -> None:
    """Hook after loading weights: mark the stored class features as outdated. A function, so that it can be pickled."""
    model._prompt_embeds_stale = model.has_text_tower


def at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in single precision if it is in half precision, unchanged otherwise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
