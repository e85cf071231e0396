"""The half steps of a meta-iteration (Algorithm 1, Eq. 9-12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch.func import functional_call

from gmdf_hf.common.processes import sum_over_processes
from gmdf_hf.data.episodes import Episode
from gmdf_hf.data.patches import patchify
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.training.alignment import Alignment
from gmdf_hf.training.image_tokenizer import ImageTokenizer
from gmdf_hf.training.inner_optimizer import ExpertSGD
from gmdf_hf.training.losses import classification_loss, masked_image_loss


def _run(model: GMDFModel, experts: Mapping[str, torch.Tensor] | None, pixel_values: torch.Tensor, **arguments):
    """The model on images, with theta_E' in place of its own experts where they are given."""
    if experts is None:
        return model(pixel_values, **arguments)
    return functional_call(model, dict(experts), (pixel_values,), arguments)


def inner_loss(
    model: GMDFModel, episode: Episode, experts: Mapping[str, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_cls of the meta-train images, each through its own domain's expert.

    Decision D10: no parameter of one expert gets a gradient from another domain's images, so one pass over all of them
    is Algorithm 1's loop over domains, exactly.

    Args:
        model: The detector.
        episode: Images of all domains.
        experts: theta_E in place of the model's own.

    Returns:
        The sum over domains of their mean losses, to be summed over processes, and the images' features
        `(num_source, P)`.
    """
    rows = episode.source
    prompts = None if episode.prompt_ids is None else episode.prompt_ids[rows]
    domain_ids = episode.domain_ids[rows]
    output = _run(model, experts, episode.pixel_values[rows], domain_ids=domain_ids, prompt_ids=prompts)
    return classification_loss(output.logits, episode.labels[rows], episode.weights[rows]), output.image_embeds


def update_experts(
    model: GMDFModel,
    loss: torch.Tensor,
    optimizer: ExpertSGD,
    domains: Sequence[int],
    shared_weight: float = 0.0,
    second_order: bool = False,
    scale: float | torch.Tensor = 1,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Eq. 10: one step of theta_E along the gradient of `loss`.

    theta_O needs no weight gradients here, unless `shared_weight` adds the meta-train loss to its objective (decision
    D16); those are left in `.grad`, where the outer step adds its own.

    Args:
        model: The detector; its parameters are left as they are.
        loss: Value of `inner_loss`.
        optimizer: Takes the step.
        domains: The meta-train domains.
        shared_weight: Factor on the gradient of theta_O that is left in `.grad`; 0 for none.
        second_order: Keep the graph of the update, for the outer step to take its gradient through.
        scale: What the loss is multiplied by against underflow in half precision. What is in `.grad` stays multiplied.

    Returns:
        theta_E' by name, equal on all processes; and whether its gradient was finite. With a `scale`, one that is not
        counts as 0: the caller then has to undo the whole iteration, as a gradient scaler does.
    """
    experts = model.expert_parameters()
    shared = list(model.shared_parameters().values()) if shared_weight else []
    inputs = [*experts.values(), *shared]
    gradients = torch.autograd.grad(loss * scale, inputs, create_graph=second_order, allow_unused=True)
    for parameter, gradient in zip(shared, gradients[len(experts) :], strict=True):
        if gradient is not None:
            parameter.grad = gradient.detach() * shared_weight
    unused = zip(experts.values(), gradients, strict=False)
    of_experts = sum_over_processes([torch.zeros_like(p) if gradient is None else gradient for p, gradient in unused])
    finite = torch.ones((), dtype=torch.bool)
    if isinstance(scale, torch.Tensor):
        finite = torch.stack([gradient.isfinite().all() for gradient in of_experts]).all()
        of_experts = [(gradient / scale).where(finite, 0) for gradient in of_experts]
    return optimizer.updated(experts, of_experts, domains), finite


@torch.no_grad()
def keep_experts(model: GMDFModel, experts: Mapping[str, torch.Tensor]) -> None:
    """Write theta_E' into the model (decision D9: Eq. 10 is an update, which is kept)."""
    for name, parameter in model.expert_parameters().items():
        parameter.copy_(experts[name])


def outer_losses(
    model: GMDFModel,
    episode: Episode,
    source_embeds: torch.Tensor,
    image_tokenizer: ImageTokenizer | None,
    alignment: Alignment | None,
    all_experts: bool = False,
    experts: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The three losses of Eq. 11 on the meta-test images, at the updated experts.

    Decision D3: the meta-test domain's own expert is left out, because that is what an unseen domain meets. Decision
    D7: the masked images take the same route as the clean ones, in one pass with them.

    Args:
        model: The detector.
        episode: Images of all domains; its mask says which patches to hide.
        source_embeds: Features of the meta-train images, shape `(num_source, P)`; detached, they are constants of
            L_sis (decision D12).
        image_tokenizer: Gives the visual codes of patches; None leaves L_mim out.
        alignment: Computes L_sis; None leaves it out.
        all_experts: Let the meta-test domain's own expert take part.
        experts: theta_E' in place of the model's own, for a gradient through the update.

    Returns:
        `classification`, and `alignment` and `masked_image` where asked for, and the features of all images `(B, P)`.
        Classification and masked image are this process's share, to be summed; the alignment is that of all processes'
        features in each of them.
    """
    rows = episode.target
    images = pixel_values = episode.pixel_values[rows]
    prompts = None if episode.prompt_ids is None else episode.prompt_ids[rows]
    mask, count = None, len(images)
    if image_tokenizer is not None:
        if episode.mask is None:
            raise ValueError("L_mim needs an episode with a mask, found None.")
        mask = torch.cat([torch.zeros_like(episode.mask), episode.mask])
        pixel_values = torch.cat([images, images])
        prompts = None if prompts is None else torch.cat([prompts, prompts])
    active = None if all_experts else episode.source_domains
    output = _run(model, experts, pixel_values, bool_masked_pos=mask, prompt_ids=prompts, active_experts=active)
    weights = episode.weights[rows]
    losses = {"classification": classification_loss(output.logits[:count], episode.labels[rows], weights)}
    embeds = torch.cat([source_embeds, output.image_embeds[:count]])
    if alignment is not None:
        losses["alignment"] = alignment.loss(embeds, episode)
    if image_tokenizer is not None and episode.mask is not None:
        hidden = episode.mask.flatten().nonzero().flatten().to(images.device, non_blocking=True)
        codes = image_tokenizer.encode(images).flatten()[hidden]
        patches = patchify(images, cast(int, model.config.patch_size)).flatten(0, 1)[hidden]
        # Every image has as many hidden patches, so this process's share of them is its share of the images.
        losses["masked_image"] = weights.sum() * masked_image_loss(
            output.mim_code_logits, output.mim_pixels, codes, patches
        )
    return losses, embeds
