"""The half steps of a meta-iteration (Algorithm 1, Eq. 9-12)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from gmdf_hf.common.processes import gather_features, num_processes, sum_over_processes
from gmdf_hf.data.episodes import Episode
from gmdf_hf.data.patches import patchify
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.training.losses import alignment_loss, classification_loss, masked_image_loss


@dataclass(frozen=True)
class MetaOptions:
    """Settings of the two half steps.

    Attributes:
        inner_learning_rate: Step size beta of theta_E.
        source_weight: Weight of the meta-train domains' mean loss in the objective of theta_O (decision D16).
        alignment_weight: Weight of L_sis.
        mim_weight: Weight of L_mim.
        second_order: Take theta_O's gradient through the update of theta_E, as MAML does (decision D9).
        align_both: Let L_sis train the source features too (decision D12).
        all_experts: Let the meta-test domain's own expert take part (decision D3).
    """

    inner_learning_rate: float = 1e-2
    source_weight: float = 0.0
    alignment_weight: float = 1.0
    mim_weight: float = 1.0
    second_order: bool = False
    align_both: bool = False
    all_experts: bool = False


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
    step_size: float,
    shared_weight: float = 0.0,
    second_order: bool = False,
    scale: float | torch.Tensor = 1,
) -> dict[str, torch.Tensor]:
    """Eq. 10: ``theta_E' = theta_E - beta * d loss / d theta_E``, plain gradient descent.

    theta_O needs no weight gradients here, unless `shared_weight` adds the meta-train loss to its objective (decision
    D16); those are left in `.grad`, where the outer step adds its own.

    Args:
        model: The detector; its parameters are left as they are.
        loss: Value of `inner_loss`.
        step_size: beta.
        shared_weight: Factor on the gradient of theta_O that is left in `.grad`; 0 for none.
        second_order: Keep the graph of the update, for the outer step to take its gradient through.
        scale: What the loss is multiplied by against underflow in half precision. With one, a gradient that is not
            finite leaves the experts as they are, as a gradient scaler does; what is in `.grad` stays multiplied.

    Returns:
        theta_E' by name, equal on all processes.
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
    step: float | torch.Tensor = step_size
    if isinstance(scale, torch.Tensor):
        finite = torch.stack([gradient.isfinite().all() for gradient in of_experts]).all()
        step = torch.where(finite, step_size / scale, 0)
        of_experts = [gradient.nan_to_num(0, 0, 0) for gradient in of_experts]
    return {
        name: parameter - step * gradient
        for (name, parameter), gradient in zip(experts.items(), of_experts, strict=True)
    }


@torch.no_grad()
def keep_experts(model: GMDFModel, experts: Mapping[str, torch.Tensor]) -> None:
    """Write theta_E' into the model (decision D9: Eq. 10 is an update, which is kept)."""
    for name, parameter in model.expert_parameters().items():
        parameter.copy_(experts[name])


def outer_losses(
    model: GMDFModel,
    episode: Episode,
    source_embeds: torch.Tensor,
    image_tokenizer: torch.nn.Module | None,
    align: bool = True,
    all_experts: bool = False,
    experts: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The three losses of Eq. 11 on the meta-test images, at the updated experts.

    Decision D3: the meta-test domain's own expert is left out, because that is what an unseen domain meets. Decision
    D7: the masked images take the same route as the clean ones, in one pass with them.

    Args:
        model: The detector.
        episode: Images of all domains; its mask says which patches to hide.
        source_embeds: Features of the meta-train images, shape `(num_source, P)`; detached, they are constants of
            L_sis (decision D12).
        image_tokenizer: Gives the visual codes of patches; None leaves L_mim out.
        align: Whether to compute L_sis.
        all_experts: Let the meta-test domain's own expert take part.
        experts: theta_E' in place of the model's own, for a gradient through the update.

    Returns:
        `classification`, and `alignment` and `masked_image` where asked for. Classification and masked image are this
        process's share, to be summed; the alignment is that of all processes' features in each of them.
    """
    rows = episode.target
    images = pixel_values = episode.pixel_values[rows]
    prompts = None if episode.prompt_ids is None else episode.prompt_ids[rows]
    mask, count = None, len(images)
    if image_tokenizer is not None:
        mask = torch.cat([torch.zeros_like(episode.mask), episode.mask])
        pixel_values = torch.cat([images, images])
        prompts = None if prompts is None else torch.cat([prompts, prompts])
    active = None if all_experts else episode.source_domains
    output = _run(model, experts, pixel_values, bool_masked_pos=mask, prompt_ids=prompts, active_experts=active)
    weights = episode.weights[rows]
    losses = {"classification": classification_loss(output.logits[:count], episode.labels[rows], weights)}
    if align:
        embeds = torch.cat([source_embeds, output.image_embeds[:count]])
        *sources, target = gather_features(embeds, episode.counts)
        losses["alignment"] = alignment_loss(sources, target)
    if image_tokenizer is not None:
        hidden = episode.mask.flatten().nonzero().flatten().to(images.device, non_blocking=True)
        codes = image_tokenizer.encode(images).flatten()[hidden]
        patches = patchify(images, model.config.vision_config.patch_size).flatten(0, 1)[hidden]
        # Every image has as many hidden patches, so this process's share of them is its share of the images.
        losses["masked_image"] = weights.sum() * masked_image_loss(
            output.mim_code_logits, output.mim_pixels, codes, patches
        )
    return losses


def meta_step(
    model: GMDFModel,
    episode: Episode,
    accelerator: Accelerator,
    image_tokenizer: torch.nn.Module | None,
    options: MetaOptions,
) -> dict[str, torch.Tensor]:
    """One meta-iteration but for the last line: theta_E updated, theta_O's gradient left in `.grad`.

    Args:
        model: The detector.
        episode: Images of all domains.
        accelerator: Of the run: precision and gradient scaler.
        image_tokenizer: Gives the visual codes of patches; None leaves L_mim out.
        options: Settings of the half steps.

    Returns:
        This process's share of each loss; the sum over processes is the loss.
    """
    domains, second_order = len(episode.source_domains), options.second_order
    scale = 1 if accelerator.scaler is None else accelerator.scaler.scale(torch.ones((), device=accelerator.device))
    # The fused attention kernels cannot be differentiated twice.
    twice_differentiable = sdpa_kernel(SDPBackend.MATH) if second_order else nullcontext()
    with accelerator.autocast(), twice_differentiable:
        source_loss, source_embeds = inner_loss(model, episode)
    shared_weight = options.source_weight / domains
    experts = update_experts(model, source_loss, options.inner_learning_rate, shared_weight, second_order, scale)
    if not second_order:
        keep_experts(model, experts)
    replaced = experts if second_order else None
    with accelerator.autocast():
        source_embeds = inner_loss(model, episode, replaced)[1] if options.align_both else source_embeds.detach()
        align = options.alignment_weight > 0
        losses = outer_losses(model, episode, source_embeds, image_tokenizer, align, options.all_experts, replaced)
        weights = {"classification": 1.0, "alignment": options.alignment_weight, "masked_image": options.mim_weight}
        total = sum(weights[name] * loss for name, loss in losses.items())
    accelerator.backward(total, inputs=list(model.shared_parameters().values()))
    if second_order:
        keep_experts(model, experts)
    if "alignment" in losses:  # every process has the whole of it
        losses["alignment"] = losses["alignment"] / num_processes()
    return {"source": source_loss.detach() / domains} | {name: loss.detach() for name, loss in losses.items()}
