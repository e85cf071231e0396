"""CLIP's vision tower with a layer of domain experts in the feed-forward half of every block."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPPreTrainedModel,
    CLIPVisionEmbeddings,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_gmdf import GMDFConfig
from .experts_gmdf import DomainExperts, DomainInformationLayer

DIL_STD = 0.1  # initial std of the last linear map of a Dataset Information Layer: gains are 1 +- 0.1


def expert_settings(config: GMDFConfig) -> dict[str, Any]:
    """Arguments of `DomainExperts`, except width and activation."""
    return {
        "num_experts": config.num_experts,
        "bottleneck_size": config.expert_bottleneck_size,
        "prompt_size": config.prompt_size,
        "dil": config.dil,
        "num_prompt_tokens": config.num_prompt_tokens,
        "aggregation": config.aggregation,
        "scale": config.expert_scale,
    }


def _draw_once(parameter: torch.Tensor, std: float) -> None:
    """Initialise all experts, along the first dimension, with the same random values (decision D17)."""
    init.copy_(parameter, (torch.randn_like(parameter[0]) * std).expand_as(parameter))


def initialize_experts(module: nn.Module) -> None:
    """Initialise an expert module: zero effect, and the same random values for all experts of a block."""
    if isinstance(module, DomainExperts):
        for weight in (module.down_weight, module.up_weight):
            _draw_once(weight, std=weight.shape[-1] ** -0.5)
        for parameter in (module.down_bias, module.up_bias, module.alpha):
            init.zeros_(parameter)
    elif isinstance(module, DomainInformationLayer):
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("_weight"):
                _draw_once(parameter, std=parameter.shape[-1] ** -0.5 if name == "query_weight" else DIL_STD)
            else:
                init.zeros_(parameter)


class GMDFVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch, class and position embeddings; the mask token replaces masked patches (decision D7)."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed images.

        Args:
            pixel_values: Shape `(B, 3, image_size, image_size)`.
            bool_masked_pos: True for masked patches, shape `(B, patches)`, as in BEiT.
            mask_token: Embedding that replaces a masked patch, shape `(D,)`; position embeddings are added afterwards.

        Returns:
            Tokens of shape `(B, 1 + patches, D)`, the class token first.

        Raises:
            ValueError: If images or mask have a shape other than the model's, or the mask comes without a mask token.
        """
        expected = (3, self.image_size, self.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"`pixel_values` must have shape (batch, {expected[0]}, {expected[1]}, {expected[2]}), "
                f"found {tuple(pixel_values.shape)}."
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        if bool_masked_pos is not None:
            if mask_token is None:
                raise ValueError("`bool_masked_pos` needs `mask_token`, found None.")
            if bool_masked_pos.shape != patches.shape[:2]:
                raise ValueError(
                    f"`bool_masked_pos` must have shape {tuple(patches.shape[:2])}, "
                    f"found {tuple(bool_masked_pos.shape)}."
                )
            hidden = bool_masked_pos.to(patches.device, non_blocking=True)
            patches = torch.where(hidden[..., None], mask_token.to(patches.dtype), patches)
        classes = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([classes, patches], dim=1) + self.position_embedding(self.position_ids)


class LayerNormWithBias(nn.LayerNorm):
    """A LayerNorm that also returns its bias: with offloaded weights, the bias is available only during this call."""

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """Normalise tokens of shape `(B, T, D)`; the bias has shape `(D,)`."""
        return super().forward(input), self.bias


class GMDFVisionLayer(CLIPEncoderLayer):
    """One block: CLIP's attention half, then ``x + MLP(LN2(x)) + experts(LN2(x))`` (Eq. 1, 4).

    Eq. 4 of the paper contains only the expert mixture; by Eq. 1 its shared part is CLIP's MLP.
    """

    def __init__(self, config: CLIPVisionConfig, **expert_settings):
        super().__init__(config)
        self.layer_norm2 = LayerNormWithBias(config.hidden_size, eps=config.layer_norm_eps)
        self.experts = DomainExperts(config.hidden_size, hidden_act=config.hidden_act, **expert_settings)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        domain_prompts: torch.Tensor | None = None,
        domain_ids: torch.Tensor | None = None,
        active_experts: torch.Tensor | Sequence[int] | None = None,
        output_expert_weights: bool = False,
        read_tokens: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Map tokens `(B, T, D)` to the same shape, or to `(K, 1, D)` with K flat indices of `read_tokens`."""
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), attention_mask=attention_mask, **kwargs)
        hidden_states = hidden_states + attended
        if read_tokens is not None:
            hidden_states = hidden_states.flatten(0, 1).index_select(0, read_tokens)[:, None]
        normed, norm_bias = self.layer_norm2(hidden_states)
        route = domain_ids, active_experts, output_expert_weights
        expert_part, _ = self.experts(normed, norm_bias, domain_prompts, *route)
        return hidden_states + self.mlp(normed) + expert_part


class GMDFVisionEncoder(nn.Module):
    """The blocks in order."""

    def __init__(self, config: CLIPVisionConfig, **expert_settings):
        super().__init__()
        layers = [GMDFVisionLayer(config, **expert_settings) for _ in range(config.num_hidden_layers)]
        layers[-1].experts.share_tokens = 1  # only the class token's output is read
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states: torch.Tensor, read_tokens: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """Run the blocks on tokens of shape `(B, T, D)`; with K `read_tokens` the last one returns `(K, 1, D)`."""
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, **kwargs)
        return self.layers[-1](hidden_states, read_tokens=read_tokens, **kwargs)


class GMDFVisionModel(CLIPPreTrainedModel):
    """CLIP's vision tower with domain experts; the parameter names are CLIP's plus those of the experts.

    Args:
        config: CLIP vision configuration.
        **expert_settings: `num_experts, bottleneck_size, prompt_size, dil, num_prompt_tokens, aggregation, scale` of
            `DomainExperts`.
    """

    config: CLIPVisionConfig  # type: ignore[assignment]  # the base class names the whole CLIP's
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    _input_embed_layer = "patch_embedding"
    _no_split_modules = ["GMDFVisionLayer", "GMDFVisionEmbeddings"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": GMDFVisionLayer,
        "attentions": CLIPAttention,
        "expert_weights": OutputRecorder(DomainExperts, index=1),
    }

    def __init__(self, config: CLIPVisionConfig, **expert_settings):
        super().__init__(config)
        self.embeddings = GMDFVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = GMDFVisionEncoder(config, **expert_settings)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize_experts(module)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code outside of transformers, the base class skips modules without parameters of their own, but CLIP
        # initialises its attention and MLP in such modules. The skip protects code that ignores the initialisation
        # flags; this class checks them.
        super()._initialize_weights(module, is_custom_code=False)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        domain_prompts: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Embed images and run the blocks.

        Args:
            pixel_values: Shape `(B, 3, image_size, image_size)`.
            domain_prompts: Prompt vectors p of the domains, shape `(E, M)`.
            bool_masked_pos: True for masked patches, shape `(B, patches)`.
            mask_token: Embedding that replaces a masked patch, shape `(D,)`.
            **kwargs: `domain_ids` and `active_experts` of `DomainExperts`; `output_hidden_states`, `output_attentions`,
                `output_expert_weights`; `read_tokens`: the K tokens that the last block computes, class tokens first.

        Returns:
            Tokens `(B, 1 + patches, D)`, or `(K, 1, D)`, and the normalised class token `(B, D)`.
        """
        tokens = self.pre_layrnorm(self.embeddings(pixel_values, bool_masked_pos, mask_token))
        tokens = self.encoder(tokens, domain_prompts=domain_prompts, **kwargs)
        classes = tokens[: pixel_values.shape[0], 0]  # exporting takes `len` for a constant
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.post_layernorm(classes))


def check_routing(
    domains: Sequence[str],
    batch_size: int,
    domain_ids: torch.Tensor | None,
    active_experts: Sequence[int] | None,
) -> None:
    """Reject domain ids of B images, or active experts, that a model with these domains does not have.

    Raises:
        ValueError: If either is out of range or both are given.
    """
    if domain_ids is not None:
        if tuple(domain_ids.shape) != (batch_size,):
            raise ValueError(f"`domain_ids` must have shape ({batch_size},), found {tuple(domain_ids.shape)}.")
        if active_experts is not None:
            raise ValueError("`active_experts` restricts the aggregated route: leave out `domain_ids`.")
        # Reading the values of a GPU tensor would stall the GPU; there a wrong index raises a device-side assertion.
        if domain_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(domain_ids.min()), int(domain_ids.max())
            if low < 0 or high >= len(domains):
                known = f"[0, {len(domains)}) for the domains {list(domains)}"
                raise ValueError(f"`domain_ids` must lie in {known}, found {low} to {high}.")
    elif active_experts is not None:
        chosen = sorted(set(active_experts))
        if not chosen or len(chosen) != len(active_experts) or chosen[0] < 0 or chosen[-1] >= len(domains):
            raise ValueError(
                f"`active_experts` must be distinct indices in [0, {len(domains)}), at least one, "
                f"found {list(active_experts)}."
            )
