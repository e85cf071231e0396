"""`merged_losses`: `balanced_erm` with L_sis and L_mim, the rows of Table 8 without experts and episodes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn

from gmdf_hf.common.processes import num_processes
from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.training.alignment import Alignment
from gmdf_hf.training.image_tokenizer import ImageTokenizer
from gmdf_hf.training.meta import inner_loss, outer_losses
from gmdf_hf.training.methods.method import Losses, Method


def merged_losses_step(
    model: GMDFModel,
    episode: Episode,
    accelerator: Accelerator,
    image_tokenizer: ImageTokenizer | None,
    alignment: Alignment | None,
    alignment_weight: float = 1.0,
    mim_weight: float = 1.0,
) -> Losses:
    """One step of `balanced_erm` with L_sis and L_mim; the experts are frozen at zero effect.

    The two losses are those of the outer step: the last domain of the episode is aligned with the others and has the
    hidden patches. Their cost equals that in GM-DF, so that the rows of Table 8 differ in one component each. There is
    no inner step whose features would be constants, so both sides of L_sis get gradients.

    Args:
        model: The detector.
        episode: Images of all domains.
        accelerator: Accelerator of the run.
        image_tokenizer: Computes the visual codes of patches; None omits L_mim.
        alignment: Computes L_sis; None omits it.
        alignment_weight: Weight of L_sis.
        mim_weight: Weight of L_mim.

    Returns:
        `classification`, optionally `alignment` and `masked_image`: this process's share of each.
    """
    domains = len(episode.source_domains) + 1
    with accelerator.autocast():
        source_loss, source_embeds = inner_loss(model, episode)
        losses, embeds = outer_losses(
            model, episode, source_embeds, image_tokenizer, alignment=alignment, all_experts=True
        )
        losses["classification"] = (source_loss + losses["classification"]) / domains
        weights = {"classification": 1.0, "alignment": alignment_weight, "masked_image": mim_weight}
        total = sum(weights[name] * loss for name, loss in losses.items())
    accelerator.backward(total, inputs=list(model.shared_parameters().values()))
    if alignment is not None:
        alignment.push(embeds, episode)
        # Every process has the full value.
        losses["alignment"] = losses["alignment"] / num_processes()
    return {name: loss.detach() for name, loss in losses.items()}


class MergedLosses(Method):
    """Fine-tuning on merged domains with the three losses of Eq. 11.

    Args:
        alignment_weight: Weight of L_sis; 0 omits it.
        mim_weight: Weight of L_mim; 0 omits it.
        alignment_queue: Images per domain in the statistics of L_sis (decision D18).
        batch_size: Images per domain and iteration, summed over processes.
        train_tower: As in `Method`.
    """

    alignment: Alignment | None = None

    def __init__(
        self,
        alignment_weight: float,
        mim_weight: float,
        alignment_queue: int,
        batch_size: int,
        train_tower: str = "all",
    ) -> None:
        super().__init__(train_tower)
        self.alignment_weight, self.mim_weight = alignment_weight, mim_weight
        self.alignment_queue, self.batch_size = alignment_queue, batch_size
        self.needs_codes = mim_weight > 0

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """Freeze the experts at zero effect."""
        assert isinstance(model, GMDFModel)
        if self.alignment_weight > 0:
            sizes = (model.config.num_experts, self.batch_size, model.config.projection_dim)
            self.alignment = Alignment(*sizes, self.alignment_queue, model.device)
        return super().prepare(model)

    def state(self) -> Mapping[str, torch.Tensor]:
        """Queues of L_sis."""
        return {} if self.alignment is None else self.alignment.state()

    def step(self, model: GMDFModel, episode: Episode, accelerator: Accelerator) -> Losses:
        """See `merged_losses_step`."""
        weights = self.alignment_weight, self.mim_weight
        return merged_losses_step(model, episode, accelerator, self.image_tokenizer, self.alignment, *weights)
