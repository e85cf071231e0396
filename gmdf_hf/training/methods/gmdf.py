"""`gmdf`: the paper's method, meta-training of experts and shared weights (Algorithm 1)."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.training.meta import MetaOptions, meta_step
from gmdf_hf.training.methods.method import Losses, Method


class GMDF(Method):
    """Experts learn in the inner step, shared weights in the outer one.

    Args:
        options: Of the half steps.
        train_tower: As in `Method`.
    """

    def __init__(self, options: MetaOptions, train_tower: str = "all") -> None:
        super().__init__(train_tower)
        self.options = options
        self.needs_codes = options.mim_weight > 0

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """The experts train too, in the inner step; the run's optimizer updates theta_O."""
        assert isinstance(model, GMDFModel)
        return self.shared_parameters(model)

    def step(self, model: GMDFModel, episode: Episode, accelerator: Accelerator) -> Losses:
        """See `meta_step`."""
        return meta_step(model, episode, accelerator, self.image_tokenizer, self.options)

    def changed_tensors(self, model: nn.Module) -> list[torch.Tensor]:
        """theta_E, which the inner step updates."""
        assert isinstance(model, GMDFModel)
        return list(model.expert_parameters().values())
