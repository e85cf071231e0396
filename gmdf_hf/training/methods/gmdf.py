"""`gmdf`: the paper's method, meta-training of experts and shared weights (Algorithm 1, Eq. 9-12)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gmdf_hf.common.processes import num_processes, sum_over_processes
from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.training.alignment import Alignment
from gmdf_hf.training.inner_optimizer import ExpertSGD
from gmdf_hf.training.meta import inner_loss, keep_experts, outer_losses, update_experts
from gmdf_hf.training.methods.method import Losses, Method


@dataclass(frozen=True)
class MetaOptions:
    """Settings of the two half steps.

    Attributes:
        source_weight: Weight of the mean meta-train loss, on the aggregated route, in the objective of theta_O
            (decision D16).
        alignment_weight: Weight of L_sis.
        mim_weight: Weight of L_mim.
        alignment_queue: Images per domain in the statistics of L_sis (decision D18).
        second_order: Differentiate theta_O's objective through the update of theta_E, as MAML does (decision D9).
        align_both: Propagate the gradient of L_sis to the source features too (decision D12).
        all_experts: Include the meta-test domain's own expert (decision D3).
    """

    source_weight: float = 0.0
    alignment_weight: float = 1.0
    mim_weight: float = 1.0
    alignment_queue: int = 0
    second_order: bool = False
    align_both: bool = False
    all_experts: bool = False


class GMDF(Method):
    """Train experts in the inner step and shared weights in the outer step.

    Args:
        inner: Optimizer of the inner step.
        options: Settings of the half steps.
        batch_size: Images per domain and iteration, summed over processes.
        train_tower: As in `Method`.
    """

    alignment: Alignment | None = None

    def __init__(self, inner: ExpertSGD, options: MetaOptions, batch_size: int, train_tower: str = "all") -> None:
        super().__init__(train_tower)
        self.inner, self.options, self.batch_size = inner, options, batch_size
        self.needs_codes = options.mim_weight > 0

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """Return theta_O for the run's optimizer; the inner step trains the experts."""
        assert isinstance(model, GMDFModel)
        self.inner.prepare(model.expert_parameters())
        if self.options.alignment_weight > 0:
            sizes = (model.config.num_experts, self.batch_size, model.config.projection_dim)
            self.alignment = Alignment(*sizes, self.options.alignment_queue, model.device)
        return self.shared_parameters(model)

    def step(self, model: GMDFModel, episode: Episode, accelerator: Accelerator) -> Losses:
        """One meta-iteration without the optimizer step: update theta_E, accumulate theta_O's gradient in `.grad`."""
        options, domains = self.options, episode.source_domains
        scale = 1 if accelerator.scaler is None else accelerator.scaler.scale(torch.ones((), device=accelerator.device))
        # Fused attention kernels have no second derivative.
        twice_differentiable = sdpa_kernel(SDPBackend.MATH) if options.second_order else nullcontext()
        with accelerator.autocast(), twice_differentiable:
            source_loss, source_embeds = inner_loss(model, episode)
        experts, finite = update_experts(model, source_loss, self.inner, domains, options.second_order, scale)
        if not options.second_order:
            keep_experts(model, experts)
        replaced = experts if options.second_order else None
        with accelerator.autocast():
            source_embeds = inner_loss(model, episode, replaced)[1] if options.align_both else source_embeds.detach()
            losses, embeds = self._outer_losses(model, episode, source_embeds, replaced)
            total = sum(self.weights[name] * loss for name, loss in losses.items())
        shared = list(model.shared_parameters().values())
        accelerator.backward(total, inputs=shared)
        if accelerator.scaler is not None:
            # The scaler checks only the gradients of theta_O: an overflow in the inner step is written into them.
            first = next(parameter.grad for parameter in shared if parameter.grad is not None)
            first += torch.where(finite, 0.0, torch.nan).to(first)
        if options.second_order:
            keep_experts(model, experts)
        if self.alignment is not None:
            self.alignment.push(embeds, episode)
            losses["alignment"] = losses["alignment"] / num_processes()  # every process has the full value
        return {"source": source_loss.detach() / len(domains)} | {name: loss.detach() for name, loss in losses.items()}

    def _outer_losses(
        self,
        model: GMDFModel,
        episode: Episode,
        source_embeds: torch.Tensor,
        experts: Mapping[str, torch.Tensor] | None,
    ) -> tuple[Losses, torch.Tensor]:
        """`outer_losses` with the method's options."""
        settings = self.image_tokenizer, self.alignment, self.options.all_experts, experts
        return outer_losses(model, episode, source_embeds, *settings, self.options.source_weight > 0)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the three losses (Eq. 11)."""
        options = self.options
        return {
            "classification": 1.0,
            "aggregated_source": options.source_weight,
            "alignment": options.alignment_weight,
            "masked_image": options.mim_weight,
        }

    def describe_step(self, model: GMDFModel, episode: Episode, accelerator: Accelerator) -> dict[str, float]:
        """Gradient norm of each unweighted loss in the vision tower, before the step; has no side effects.

        These norms, not the loss values, are the basis for choosing loss weights. `alignment_floor`: see
        `Alignment.floor`.
        """
        tower = [p for name, p in model.shared_parameters().items() if name.startswith("vision_model.")]
        if not tower or accelerator.scaler is not None:  # unscaled half-precision gradients would underflow
            return {}
        with accelerator.autocast():
            source_loss, source_embeds = inner_loss(model, episode)
            both = source_embeds if self.options.align_both else source_embeds.detach()
            losses, _ = self._outer_losses(model, episode, both, None)
        losses = {"source": source_loss / len(episode.source_domains), **losses}
        norms = {}
        for name, loss in losses.items():
            found = torch.autograd.grad(loss, tower, allow_unused=True, retain_graph=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(tower, found, strict=True)]
            squares = [gradient.square().sum() for gradient in sum_over_processes(filled)]
            norms[name] = float(torch.stack(squares).sum().sqrt())
        floor = None if self.alignment is None else self.alignment.floor()
        return norms | ({} if floor is None else {"alignment_floor": floor})

    def changed_tensors(self, model: nn.Module) -> list[torch.Tensor]:
        """theta_E and the method's state."""
        assert isinstance(model, GMDFModel)
        return [*model.expert_parameters().values(), *self.state().values()]

    def state(self) -> Mapping[str, torch.Tensor]:
        """Moments of the inner optimizer and queues of L_sis."""
        alignment = {} if self.alignment is None else self.alignment.state()
        inner = {f"inner.{name}": value for name, value in self.inner.state().items()}
        return inner | {f"alignment.{name}": value for name, value in alignment.items()}
