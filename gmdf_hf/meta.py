"""The half steps of a meta-iteration (Algorithm 1, Eq. 9-12)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gmdf_hf.losses import alignment_loss, classification_loss, masked_image_loss
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.modeling.mim_gmdf import draw_mask, patchify


@dataclass(frozen=True)
class Episode:
    """A batch of every domain; the meta-test domain's images stand last.

    Attributes:
        pixel_values: Images of shape `(B, 3, H, W)`.
        labels: 0 real, 1 fake, shape `(B,)`.
        domain_ids: Domain of each image, shape `(B,)`.
        num_source: Images that belong to meta-train domains.
        prompt_ids: Class sentences of each image, shape `(B, 2, length)`, for template P3; None otherwise.
    """

    pixel_values: torch.Tensor
    labels: torch.Tensor
    domain_ids: torch.Tensor
    num_source: int
    prompt_ids: torch.Tensor | None = None

    def part(self, meta_test: bool) -> Episode:
        """The meta-test images, or the meta-train ones."""
        rows = slice(self.num_source, None) if meta_test else slice(self.num_source)
        prompts = None if self.prompt_ids is None else self.prompt_ids[rows]
        count = 0 if meta_test else self.num_source
        return Episode(self.pixel_values[rows], self.labels[rows], self.domain_ids[rows], count, prompts)

    def to(self, device: torch.device) -> Episode:
        """The same episode on another device."""
        prompts = None if self.prompt_ids is None else self.prompt_ids.to(device, non_blocking=True)
        tensors = (x.to(device, non_blocking=True) for x in (self.pixel_values, self.labels, self.domain_ids))
        return Episode(*tensors, self.num_source, prompts)

    @property
    def source_domains(self) -> list[int]:
        """Indices of the meta-train domains."""
        return self.domain_ids[: self.num_source].unique().tolist()


def inner_loss(model: GMDFModel, episode: Episode) -> tuple[torch.Tensor, torch.Tensor]:
    """L_cls of the meta-train images, each through its own domain's expert.

    Decision D10: no parameter of one expert gets a gradient from another domain's images, so one pass over all of them
    is Algorithm 1's loop over domains, exactly.

    Args:
        model: The detector.
        episode: Images of all domains.

    Returns:
        The sum over domains of their mean losses, and the images' features `(num_source, P)`.
    """
    source = episode.part(meta_test=False)
    output = model(source.pixel_values, domain_ids=source.domain_ids, prompt_ids=source.prompt_ids)
    return classification_loss(output.logits, source.labels, source.domain_ids), output.image_embeds


def update_experts(model: GMDFModel, loss: torch.Tensor, step_size: float, shared_weight: float = 0.0) -> None:
    """Eq. 10: ``theta_E <- theta_E - beta * d loss / d theta_E``, plain gradient descent.

    Decision D9: the updated theta_E is kept, and the outer step takes no gradient through this update. theta_O needs no
    weight gradients here, unless `shared_weight` adds the meta-train loss to its objective (decision D16); those are
    left in `.grad`, where the outer step adds its own.

    Args:
        model: The detector.
        loss: Value of `inner_loss`.
        step_size: beta.
        shared_weight: Factor on the gradient of theta_O that is left in `.grad`; 0 for none.
    """
    experts = list(model.expert_parameters().values())
    shared = list(model.shared_parameters().values()) if shared_weight else []
    gradients = torch.autograd.grad(loss, experts + shared, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(experts, gradients, strict=False):
            parameter.sub_(gradient, alpha=step_size)
        for parameter, gradient in zip(shared, gradients[len(experts) :], strict=True):
            if gradient is not None:
                parameter.grad = gradient * shared_weight


def outer_losses(
    model: GMDFModel,
    episode: Episode,
    source_embeds: torch.Tensor,
    image_tokenizer: torch.nn.Module | None,
    generator: torch.Generator,
    align: bool = True,
    all_experts: bool = False,
) -> dict[str, torch.Tensor]:
    """The three losses of Eq. 11 on the meta-test images, at the updated experts.

    Decision D3: the meta-test domain's own expert is left out, because that is what an unseen domain meets. Decision
    D7: the masked images take the same route as the clean ones, in one pass with them.

    Args:
        model: The detector.
        episode: Images of all domains.
        source_embeds: Features of the meta-train images, shape `(num_source, P)`; detached, they are constants of
            L_sis (decision D12).
        image_tokenizer: Gives the visual codes of patches; None leaves L_mim out.
        generator: Source of the masks.
        align: Whether to compute L_sis.
        all_experts: Let the meta-test domain's own expert take part.

    Returns:
        `classification`, and `alignment` and `masked_image` where asked for.
    """
    target = episode.part(meta_test=True)
    pixel_values, prompt_ids, mask = target.pixel_values, target.prompt_ids, None
    count = len(pixel_values)
    if image_tokenizer is not None:
        vision, config = model.config.vision_config, model.config
        hidden = draw_mask(
            count, vision.image_size // vision.patch_size, config.mask_ratio, config.mask_strategy, generator
        ).to(pixel_values.device)
        mask = torch.cat([torch.zeros_like(hidden), hidden])
        pixel_values = torch.cat([pixel_values, pixel_values])
        prompt_ids = None if prompt_ids is None else torch.cat([prompt_ids, prompt_ids])
    output = model(
        pixel_values,
        bool_masked_pos=mask,
        prompt_ids=prompt_ids,
        active_experts=None if all_experts else episode.source_domains,
    )
    losses = {"classification": classification_loss(output.logits[:count], target.labels, target.domain_ids)}
    if align:
        source_ids = episode.domain_ids[: episode.num_source]
        sources = [source_embeds[source_ids == domain] for domain in episode.source_domains]
        losses["alignment"] = alignment_loss(sources, output.image_embeds[:count])
    if image_tokenizer is not None:
        codes = image_tokenizer.encode(target.pixel_values)[hidden]
        patches = patchify(target.pixel_values, model.config.vision_config.patch_size)[hidden]
        losses["masked_image"] = masked_image_loss(output.mim_code_logits, output.mim_pixels, codes, patches)
    return losses
