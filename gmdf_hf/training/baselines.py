"""What GM-DF is compared with, in the same loop: same images, steps and schedule, another gradient.

Each step leaves the gradient of what trains in `.grad` and returns its losses, as `meta_step` does. The methods:

- `linear_probe`: frozen CLIP; only its last linear map and the temperature train.
- `direct_merge`: plain fine-tuning on the data sets poured into one, in which a data set counts by its size. This is
  the paper's "CLIP" ("multiple datasets are randomly shuffled and then consolidated into a new dataset").
- `balanced_erm`: the same with every data set counting the same, however small (empirical risk minimisation over
  domains). On data sets of one size the two are one.
- `merged_losses`: `balanced_erm` and L_sis and L_mim: the rows of Table 8 without experts and episodes.
- `mldg`: Li et al. 2018, first order: the gradient on the meta-train domains, and that on the meta-test domain after a
  step on them. Experts take no part; GM-DF's episodes without GM-DF's model.

Any image classifier of transformers can stand in for CLIP in `linear_probe`, `direct_merge` and `balanced_erm`: see
`gmdf_hf.training.classifiers`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from gmdf_hf.common.processes import num_processes, sum_over_processes
from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.training.meta import inner_loss, outer_losses

Losses = dict[str, torch.Tensor]


def size_shares(images: Sequence[int]) -> torch.Tensor:
    """Each domain's share of the merged data set, shape `(domains,)`: what `direct_merge` weighs domains with."""
    counts = torch.tensor(images, dtype=torch.float32)
    return counts / counts.sum()


def equal_shares(domains: int) -> torch.Tensor:
    """The same share for every domain: what `balanced_erm` weighs domains with."""
    return torch.full((domains,), 1 / domains)


def merged_step(model: torch.nn.Module, episode: Episode, accelerator: Accelerator, shares: torch.Tensor) -> Losses:
    """One step of fine-tuning on merged domains.

    A batch holds as many images of each domain; weighing them by the domains' shares gives, on average, the gradient
    of batches drawn from the merged data set, without a small domain missing from most of them.

    Args:
        model: Classifier with `logits` of shape `(B, 2)`.
        episode: Images of all domains.
        accelerator: Of the run.
        shares: Weight of each domain's mean loss, shape `(domains,)`.

    Returns:
        `classification`, this process's share of it.
    """
    prompts = {} if episode.prompt_ids is None else {"prompt_ids": episode.prompt_ids}
    weights = episode.weights * shares.to(episode.weights)[episode.domain_ids]
    with accelerator.autocast():
        logits = model(pixel_values=episode.pixel_values, **prompts).logits
        loss = (cross_entropy(logits.float(), episode.labels, reduction="none") * weights).sum()
    accelerator.backward(loss)
    return {"classification": loss.detach()}


def merged_losses_step(
    model: GMDFModel,
    episode: Episode,
    accelerator: Accelerator,
    image_tokenizer: torch.nn.Module | None,
    alignment_weight: float = 1.0,
    mim_weight: float = 1.0,
) -> Losses:
    """One step of `balanced_erm` with L_sis and L_mim, the experts being at zero effect and frozen.

    The two losses are those of the outer step: the domain that is last in the episode is aligned with the others and is
    the one with hidden patches. So they cost what they cost in GM-DF, and Table 8 changes one thing at a time. There is
    no inner step that would make the other domains' features constants; both sides of L_sis train.

    Args:
        model: The detector.
        episode: Images of all domains.
        accelerator: Of the run.
        image_tokenizer: Gives the visual codes of patches; None leaves L_mim out.
        alignment_weight: Weight of L_sis; 0 leaves it out.
        mim_weight: Weight of L_mim.

    Returns:
        `classification`, and `alignment` and `masked_image` where asked for: this process's share of each.
    """
    domains = len(episode.source_domains) + 1
    with accelerator.autocast():
        source_loss, source_embeds = inner_loss(model, episode)
        losses = outer_losses(
            model,
            episode,
            source_embeds,
            image_tokenizer=image_tokenizer,
            align=alignment_weight > 0,
            all_experts=True,
        )
        losses["classification"] = (source_loss + losses["classification"]) / domains
        weights = {"classification": 1.0, "alignment": alignment_weight, "masked_image": mim_weight}
        total = sum(weights[name] * loss for name, loss in losses.items())
    accelerator.backward(total, inputs=list(model.shared_parameters().values()))
    if "alignment" in losses:  # every process has the whole of it
        losses["alignment"] = losses["alignment"] / num_processes()
    return {name: loss.detach() for name, loss in losses.items()}


def mldg_step(
    model: GMDFModel,
    episode: Episode,
    accelerator: Accelerator,
    inner_learning_rate: float,
    meta_test_weight: float = 1.0,
) -> Losses:
    """One step of first-order MLDG: ``grad F(theta) + beta * grad G(theta')`` with ``theta' = theta - alpha grad F``.

    F is the mean loss of the meta-train domains and G the loss of the meta-test domain. First order: theta' is taken as
    a constant plus theta, so the second gradient is the one at theta' as it stands (Li et al. 2018, section 3).

    The weights are changed in place and put back, because a model that recomputes its activations in the backward pass
    would do that with the wrong weights if they had only been lent to it.

    Args:
        model: The detector, its experts at zero effect and frozen.
        episode: Images of all domains.
        accelerator: Of the run; without gradient scaling.
        inner_learning_rate: alpha.
        meta_test_weight: beta.

    Returns:
        `source` (F) and `classification` (G): this process's share of each.

    Raises:
        ValueError: If the run scales its gradients against underflow, which is not built in here.
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
        # All processes take the same step to theta'; what is left in `.grad` is this process's share.
        for parameter, gradient in zip(parameters, sum_over_processes(source), strict=True):
            parameter.sub_(gradient, alpha=inner_learning_rate)
    try:
        with accelerator.autocast():
            nothing = torch.empty(0, device=episode.pixel_values.device)
            losses = outer_losses(model, episode, nothing, image_tokenizer=None, align=False, all_experts=True)
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
    """Gradients with zero in place of a missing one: every process must sum the same tensors."""
    pairs = zip(parameters, gradients, strict=True)
    return [torch.zeros_like(parameter) if gradient is None else gradient for parameter, gradient in pairs]
