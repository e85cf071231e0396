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
    """Forward pass; `experts` (theta_E'), if given, replaces the model's expert parameters."""
    if experts is None:
        return model(pixel_values, **arguments)
    return functional_call(model, dict(experts), (pixel_values,), arguments)


def inner_loss(
    model: GMDFModel, episode: Episode, experts: Mapping[str, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_cls of the meta-train images, each with the expert of its own domain.

    Decision D10: an expert gets no gradient from another domain's images, so one pass over all domains equals the loop
    of Algorithm 1.

    Args:
        model: The detector.
        episode: Images of all domains.
        experts: theta_E that replaces the model's own.

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
    second_order: bool = False,
    scale: float | torch.Tensor = 1,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Eq. 10: one step of theta_E along the gradient of `loss`; theta_O gets no gradient here.

    Args:
        model: The detector; its parameters are not modified.
        loss: Value of `inner_loss`.
        optimizer: Inner optimizer.
        domains: The meta-train domains.
        second_order: Keep the graph of the update, so that the outer step differentiates through it.
        scale: Loss scale against underflow in half precision.

    Returns:
        theta_E' by name, equal on all processes; and whether its gradient was finite. With a `scale`, a non-finite
        gradient is replaced by 0, and the caller must undo the whole iteration, as a gradient scaler does.
    """
    experts = model.expert_parameters()
    inputs = list(experts.values())
    gradients = torch.autograd.grad(loss * scale, inputs, create_graph=second_order, allow_unused=True)
    unused = zip(inputs, gradients, strict=True)
    of_experts = sum_over_processes([torch.zeros_like(p) if gradient is None else gradient for p, gradient in unused])
    finite = torch.ones((), dtype=torch.bool)
    if isinstance(scale, torch.Tensor):
        finite = torch.stack([gradient.isfinite().all() for gradient in of_experts]).all()
        of_experts = [(gradient / scale).where(finite, 0) for gradient in of_experts]
    return optimizer.updated(experts, of_experts, domains), finite


@torch.no_grad()
def keep_experts(model: GMDFModel, experts: Mapping[str, torch.Tensor]) -> None:
    """Write theta_E' into the model (decision D9: the update of Eq. 10 is permanent)."""
    current = model.expert_parameters()
    torch._foreach_copy_(list(current.values()), [experts[name] for name in current])


def outer_losses(
    model: GMDFModel,
    episode: Episode,
    source_embeds: torch.Tensor,
    image_tokenizer: ImageTokenizer | None,
    alignment: Alignment | None,
    all_experts: bool = False,
    experts: Mapping[str, torch.Tensor] | None = None,
    with_sources: bool = False,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The three losses of Eq. 11 on the meta-test images, at the updated experts.

    Decision D3: the meta-test domain's own expert is excluded, as for an unseen domain. Decision D7: the masked images
    take the same route as the clean ones, in the same pass.

    Args:
        model: The detector.
        episode: Images of all domains; its mask marks the patches to hide.
        source_embeds: Features of the meta-train images, shape `(num_source, P)`; detached, they are constants of
            L_sis (decision D12).
        image_tokenizer: Computes the visual codes of patches; None omits L_mim.
        alignment: Computes L_sis; None omits it.
        all_experts: Include the meta-test domain's own expert.
        experts: theta_E' that replaces the model's own, for a gradient through the update.
        with_sources: Also compute L_cls of the meta-train images on the same aggregated route (decision D16), in the
            same pass.

    Returns:
        `classification`, optionally `alignment`, `masked_image` and `aggregated_source`, the mean over the meta-train
        domains; and the features of all images `(B, P)`.
        `classification` and `masked_image` are this process's share, to be summed over processes; `alignment` covers
        the features of all processes and is equal on each.
    """
    rows = episode.target
    images = pixel_values = episode.pixel_values[rows]
    prompts = None if episode.prompt_ids is None else episode.prompt_ids[rows]
    mask, count, sources = None, len(images), episode.source
    if image_tokenizer is not None:
        if episode.mask is None:
            raise ValueError("L_mim needs an episode with a mask, found None.")
        mask = torch.cat([torch.zeros_like(episode.mask), episode.mask])
        pixel_values = torch.cat([images, images])
        prompts = None if prompts is None else torch.cat([prompts, prompts])
    if with_sources:
        pixel_values = torch.cat([pixel_values, episode.pixel_values[sources]])
        if mask is not None:
            unmasked = mask.new_zeros(len(pixel_values) - len(mask), mask.shape[1])
            mask = torch.cat([mask, unmasked])
        if prompts is not None and episode.prompt_ids is not None:
            prompts = torch.cat([prompts, episode.prompt_ids[sources]])
    active = None if all_experts else episode.source_domains
    output = _run(model, experts, pixel_values, bool_masked_pos=mask, prompt_ids=prompts, active_experts=active)
    weights = episode.weights[rows]
    losses = {"classification": classification_loss(output.logits[:count], episode.labels[rows], weights)}
    if with_sources:
        labels, source_weights = episode.labels[sources], episode.weights[sources]
        loss = classification_loss(output.logits[-len(labels) :], labels, source_weights)
        losses["aggregated_source"] = loss / len(episode.source_domains)
    embeds = torch.cat([source_embeds, output.image_embeds[:count]])
    if alignment is not None:
        losses["alignment"] = alignment.loss(embeds, episode)
    if image_tokenizer is not None and episode.mask is not None:
        hidden = episode.mask.flatten().nonzero().flatten().to(images.device, non_blocking=True)
        codes = image_tokenizer.encode(images).flatten()[hidden]
        patches = patchify(images, cast(int, model.config.patch_size)).flatten(0, 1)[hidden]
        # Every image has the same number of hidden patches: this process's share of patches is its share of images.
        losses["masked_image"] = weights.sum() * masked_image_loss(
            output.mim_code_logits, output.mim_pixels, codes, patches
        )
    return losses, embeds
