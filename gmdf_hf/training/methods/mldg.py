"""`mldg`: first-order MLDG (Li et al. 2018) on CLIP, with GM-DF's episodes and without experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from gmdf_hf.common.processes import sum_over_processes
from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.training.meta import inner_loss, outer_losses
from gmdf_hf.training.methods.method import Losses, Method


def mldg_step(
    model: GMDFModel,
    episode: Episode,
    accelerator: Accelerator,
    inner_learning_rate: float,
    meta_test_weight: float = 1.0,
) -> Losses:
    """One step of first-order MLDG: ``grad F(theta) + beta * grad G(theta')`` with ``theta' = theta - alpha grad F``.

    F is the mean loss of the meta-train domains and G the loss of the meta-test domain. First order: theta' is
    treated as theta plus a constant, so the second gradient is the gradient of G at theta' (Li et al. 2018, section 3).

    The weights are changed in place and restored, because gradient checkpointing recomputes activations in the backward
    pass and would not use weights substituted only for the forward pass.

    Args:
        model: The detector, its experts at zero effect and frozen.
        episode: Images of all domains.
        accelerator: Accelerator of the run; without gradient scaling.
        inner_learning_rate: alpha.
        meta_test_weight: beta.

    Returns:
        `source` (F) and `classification` (G): this process's share of each.

    Raises:
        ValueError: If the run uses a gradient scaler, which is not supported.
    """
    if accelerator.scaler is not None:
        raise ValueError("mldg takes its inner step without a gradient scaler: use mixed_precision no or bf16.")
    parameters = list(model.shared_parameters().values())
    domains = len(episode.source_domains)
    with accelerator.autocast():
        source_loss = inner_loss(model, episode)[0] / domains
    source = _filled(parameters, torch.autograd.grad(source_loss, parameters, allow_unused=True))
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        # All processes use the same theta'; `.grad` keeps this process's share.
        for parameter, gradient in zip(parameters, sum_over_processes(source), strict=True):
            parameter.sub_(gradient, alpha=inner_learning_rate)
    try:
        with accelerator.autocast():
            nothing = torch.empty(0, model.config.projection_dim, device=episode.pixel_values.device)
            losses, _ = outer_losses(model, episode, nothing, image_tokenizer=None, alignment=None, all_experts=True)
            target_loss = losses["classification"]
        target = _filled(parameters, torch.autograd.grad(target_loss, parameters, allow_unused=True))
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    for parameter, of_source, of_target in zip(parameters, source, target, strict=True):
        parameter.grad = of_source + meta_test_weight * of_target
    return {"source": source_loss.detach(), "classification": target_loss.detach()}


def _filled(parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """Replace missing gradients by zeros, because all processes must sum the same tensors."""
    pairs = zip(parameters, gradients, strict=True)
    return [torch.zeros_like(parameter) if gradient is None else gradient for parameter, gradient in pairs]


class MLDG(Method):
    """Meta-learning of all weights: a step on the meta-train domains, then the meta-test gradient at the new weights.

    Args:
        inner_learning_rate: Step size alpha.
        train_tower: As in `Method`.
    """

    def __init__(self, inner_learning_rate: float, train_tower: str = "all") -> None:
        super().__init__(train_tower)
        self.inner_learning_rate = inner_learning_rate

    def step(self, model: GMDFModel, episode: Episode, accelerator: Accelerator) -> Losses:
        """See `mldg_step`."""
        return mldg_step(model, episode, accelerator, self.inner_learning_rate)
