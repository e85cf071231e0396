"""`add_domain`: train the expert of a new domain in a trained detector; all other weights stay unchanged."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling import GMDFModel, GMDFOutput
from gmdf_hf.training.adapters import train_only_domain
from gmdf_hf.training.methods.merged import equal_shares, merged_step
from gmdf_hf.training.methods.method import Losses, Method


class KnownDomain(nn.Module):
    """A detector for images of one known domain: it scores them with that domain's expert.

    Args:
        model: The detector.
        domain: Name of the domain.
    """

    def __init__(self, model: GMDFModel, domain: str) -> None:
        super().__init__()
        self.model, self.index = model, model.domain_id(domain)

    def forward(self, pixel_values: torch.Tensor, **arguments: Any) -> GMDFOutput:
        """Score images of shape `(B, 3, image_size, image_size)`."""
        domain_ids = torch.full((len(pixel_values),), self.index, device=pixel_values.device)
        return self.model(pixel_values, domain_ids=domain_ids, **arguments)


class AddDomain(Method):
    """Train the expert of one domain and score the domain's images with it.

    Args:
        domain: Name of the domain.
    """

    def __init__(self, domain: str) -> None:
        super().__init__()
        self.domain = domain

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """Freeze everything but the domain's expert."""
        assert isinstance(model, GMDFModel)
        return list(train_only_domain(model, self.domain).values())

    def step(self, model: GMDFModel, episode: Episode, accelerator: Accelerator) -> Losses:
        """Fine-tune the expert on its domain's images."""
        return merged_step(self.route(model), episode, accelerator, equal_shares(1))

    def route(self, model: nn.Module) -> nn.Module:
        """Score with the expert of the known domain."""
        assert isinstance(model, GMDFModel)
        return KnownDomain(model, self.domain)

    def changed_tensors(self, model: nn.Module) -> list[torch.Tensor]:
        """None: `step` changes no tensors."""
        return []
