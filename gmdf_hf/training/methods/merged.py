"""Fine-tuning on merged domains: `direct_merge`, `balanced_erm` and `linear_probe`.

- `direct_merge`: plain fine-tuning on the merged data sets, so that each is weighted by its size. This is the paper's
  "CLIP" ("multiple datasets are randomly shuffled and then consolidated into a new dataset").
- `balanced_erm`: all data sets have equal weights (empirical risk minimisation over domains). Equals `direct_merge` for
  data sets of equal size.
- `linear_probe`: frozen features; only the last linear map (and CLIP's temperature) trains.

Any image classifier of transformers can replace CLIP: see `gmdf_hf.training.classifiers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling.detectors import Detector
from gmdf_hf.training.classifiers import freeze_all_but_the_head
from gmdf_hf.training.methods.method import Losses, Method


def size_shares(images: Sequence[int]) -> torch.Tensor:
    """Each domain's fraction of the merged data set, shape `(domains,)`: the weights of `direct_merge`."""
    counts = torch.tensor(images, dtype=torch.float32)
    return counts / counts.sum()


def equal_shares(domains: int) -> torch.Tensor:
    """Equal weights for all domains: the weights of `balanced_erm`."""
    return torch.full((domains,), 1 / domains)


def merged_step(model: nn.Module, episode: Episode, accelerator: Accelerator, shares: torch.Tensor) -> Losses:
    """One step of fine-tuning on merged domains.

    A batch has the same number of images of each domain. Weighting them by the domains' shares gives the expected
    gradient of batches drawn from the merged data set, but every batch includes the small domains.

    Args:
        model: Classifier with `logits` of shape `(B, 2)`.
        episode: Images of all domains.
        accelerator: Accelerator of the run.
        shares: Weight of each domain's mean loss, shape `(domains,)`.

    Returns:
        `classification` and the auxiliary losses of a detector: this process's share of each.
    """
    with accelerator.autocast():
        losses, _ = merged_losses(model, episode, shares)
    return backward(losses, accelerator)


def merged_losses(model: nn.Module, episode: Episode, shares: torch.Tensor, **options: Any) -> tuple[Losses, Any]:
    """Losses of `merged_step` before the backward pass, and the model's output; it takes `options` of its own."""
    prompts = {} if episode.prompt_ids is None else {"prompt_ids": episode.prompt_ids}
    weights = episode.weights * shares.to(episode.weights)[episode.domain_ids]
    output = model(pixel_values=episode.pixel_values, **prompts, **options)
    if isinstance(model, Detector):
        inputs = episode.pixel_values, episode.labels, episode.domain_ids, episode.forged
        of_images = model.losses(output, *inputs)
    else:
        of_images = {"classification": cross_entropy(output.logits.float(), episode.labels, reduction="none")}
    return {name: (loss.float() * weights).sum() for name, loss in of_images.items()}, output


def backward(losses: Losses, accelerator: Accelerator) -> Losses:
    """Add the gradient of the sum of the losses to `.grad`, and return the losses without a graph."""
    accelerator.backward(torch.stack([*losses.values()]).sum())
    return {name: loss.detach() for name, loss in losses.items()}


class Merged(Method):
    """`direct_merge` or `balanced_erm`, depending on the domains' shares.

    Args:
        shares: Weight of each domain's mean loss, shape `(domains,)`.
        train_tower: As in `Method`.
    """

    def __init__(self, shares: torch.Tensor, train_tower: str = "all") -> None:
        super().__init__(train_tower)
        self.shares = shares

    def step(self, model: nn.Module, episode: Episode, accelerator: Accelerator) -> Losses:
        """See `merged_step`."""
        return merged_step(model, episode, accelerator, self.shares)


class LinearProbe(Merged):
    """`linear_probe`: train only the head, with equal domain weights, no dropout and fixed batch statistics."""

    trains_model = False

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """Freeze all parameters except the head."""
        freeze_all_but_the_head(model)
        return [parameter for parameter in model.parameters() if parameter.requires_grad]
