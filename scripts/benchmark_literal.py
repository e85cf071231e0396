"""Literal implementation of Algorithm 1 in eager PyTorch, the reference for the speed of the optimised one.

It processes the domains one by one, computes gradients of all parameters in every step, runs the text tower in every
pass, runs separate clean and masked passes, computes the attention over the E views of every token (Eq. 5-6), and
computes L_sis from the eigenvalues of a P x P matrix, as torchmetrics does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy, l1_loss

from gmdf_hf.data.patches import draw_mask, patchify
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.modeling.experts_gmdf import DomainExperts
from gmdf_hf.training.image_tokenizer import GMDFImageTokenizer


def views_attended(experts: DomainExperts, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eq. 5-6 to the letter: every view's attention to all, ``softmax(V V^T / sqrt(D)) V``, and then their mean.

    Replaces `DomainExperts._aggregate`, which reduces the attention before it multiplies, and returns the same values.
    """
    scores = views @ views.transpose(-1, -2) * views.shape[-1] ** -0.5
    attention = scores.softmax(-1)
    reduced = getattr(attention @ views, experts.aggregation)(dim=1)
    return reduced, scores, getattr(attention, experts.aggregation)(dim=1)


def frechet(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Eq. 8 from the eigenvalues of the product of the covariances."""
    with torch.autocast(source.device.type, enabled=False):  # eigenvalues need single precision
        source, target = source.float(), target.float()
        covariances = [torch.cov(features.T) for features in (source, target)]
        root = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
        between_means = (source.mean(0) - target.mean(0)).square().sum()
        return between_means + covariances[0].trace() + covariances[1].trace() - 2 * root


def literal_iteration(
    model: GMDFModel,
    tokenizer: GMDFImageTokenizer,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[torch.Tensor],
    labels: torch.Tensor,
    inner_learning_rate: float,
    accelerator: Accelerator,
) -> None:
    """One meta-iteration; `batches` has one batch per domain, the last one is the meta-test domain."""
    device, experts = accelerator.device, model.expert_parameters()
    prompt_ids = torch.tensor(model.config.prompt_ids, device=device)
    labels = labels.to(device)
    *sources, target = (batch.to(device) for batch in batches)
    kept = DomainExperts._aggregate
    DomainExperts._aggregate = views_attended  # type: ignore[method-assign, assignment]
    try:
        features = []
        for domain, images in enumerate(sources):
            with accelerator.autocast():
                model.prompt_embeds = model.encode_prompts(prompt_ids)
                output = model(images, domain_ids=labels.new_full((len(images),), domain))
                loss = cross_entropy(output.logits.float(), labels)
            loss.backward()
            with torch.no_grad():
                for parameter in experts.values():
                    if parameter.grad is not None:
                        parameter.sub_(inner_learning_rate * parameter.grad)
            model.zero_grad()
            features.append(output.image_embeds.detach())
        active = list(range(len(sources)))
        patch_size = model.config.vision.patch_size
        mask = draw_mask(len(target), model.config.image_size // patch_size, model.config.mask_ratio)
        with accelerator.autocast():
            model.prompt_embeds = model.encode_prompts(prompt_ids)
            clean = model(target, active_experts=active)
            model.prompt_embeds = model.encode_prompts(prompt_ids)
            masked = model(target, bool_masked_pos=mask.to(device), active_experts=active)
            mask = mask.to(device)
            loss = cross_entropy(clean.logits.float(), labels)
            loss = loss + sum(frechet(source, clean.image_embeds) for source in features) / len(features)
            loss = loss + cross_entropy(masked.mim_code_logits.float(), tokenizer.encode(target)[mask])
            loss = loss + l1_loss(masked.mim_pixels.float(), patchify(target, patch_size)[mask])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.shared_parameters().values(), torch.inf)
        loss.item()
        optimizer.step()
        model.zero_grad()
    finally:
        DomainExperts._aggregate = kept  # type: ignore[method-assign]
