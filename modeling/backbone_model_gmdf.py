"""GM-DF on an image backbone other than CLIP's vision tower (decision D20)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, Siglip2TextModel, SiglipTextModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .backbones_gmdf import BackboneExperts, Route, recomputation_contexts
from .configuration_gmdf import GMDFConfig
from .modeling_gmdf import GMDFModel
from .text_gmdf import at_least_single
from .vision_gmdf import expert_settings, initialize_experts

T = TypeVar("T", bound="GMDFBackboneModel")
# AutoModel does not cover all of them.
TEXT_TOWERS: dict[str, type[PreTrainedModel]] = {
    "siglip_text_model": SiglipTextModel,
    "siglip2_text_model": Siglip2TextModel,
}


class GMDFBackboneModel(GMDFModel):
    """A detector whose experts are added to any image backbone of transformers, timm's included.

    A new model has the pooled features of its backbone on every route. SigLIP and SigLIP 2 bring a text tower, a
    temperature and a bias; other backbones have none, and the class features are learned vectors.

    Batch normalisation keeps its loaded statistics in training too (`freeze_batch_norm`): the statistics of a batch
    that mixes domains fit none of them, and the inner step would change the statistics with which theta_E' is
    evaluated.
    """

    def _make_backbone(self, config: GMDFConfig) -> tuple[int, int, int]:
        self.vision_model = AutoModel.from_config(config.vision)
        if not config.backbone_pooler:
            self.vision_model.pooler = None
        self.backbone_experts = BackboneExperts(self.vision_model, **expert_settings(config))
        config.backbone_patch_size = self.backbone_experts.patch_size
        if config.backbone_image_size is None:
            config.backbone_image_size = image_size_of(config.vision)
        width = self.backbone_experts.map_size
        return self.backbone_experts.feature_size, width, width if self.backbone_experts.is_transformer else 3

    def _make_class_features(self, config: GMDFConfig) -> None:
        prompt_embeds = torch.zeros(2, config.projection_dim)
        if config.text_config is None:
            self.prompt_embeds = nn.Parameter(prompt_embeds)  # learned: there are no sentences to encode
            return
        self.register_buffer("prompt_embeds", prompt_embeds)
        self.logit_bias = nn.Parameter(torch.zeros(()))
        if self.has_text_tower:
            self.text_model = TEXT_TOWERS[config.text.model_type]._from_config(config.text)
            self.text_projection = nn.Identity()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize_experts(module)
        if not isinstance(module, GMDFBackboneModel):
            return
        if self.config.text_config is None:
            init.normal_(module.prompt_embeds, std=self.config.projection_dim**-0.5)
        else:  # SigLIP's pooled features need no projection
            init.copy_(module.visual_projection.weight, torch.eye(*module.visual_projection.weight.shape))
            init.zeros_(module.logit_bias)

    def encode_images(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        domain_ids: torch.Tensor | None = None,
        active_experts: torch.Tensor | Sequence[int] | None = None,
        **kwargs,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor | None]:
        """Return image features before the projection, as `GMDFModel.encode_images`."""
        mask_token = None if bool_masked_pos is None else self.mim_head.mask_token
        wants_shares = bool(kwargs.get("output_expert_weights"))
        route = Route(self.domain_prompts, domain_ids, active_experts, wants_shares, bool_masked_pos, mask_token)
        attentions = {"output_attentions": True} if kwargs.get("output_attentions") else {}
        vision, patches = self.backbone_experts.run(self.vision_model, pixel_values, route, **attentions)
        if kwargs.get("output_hidden_states"):
            vision["hidden_states"] = tuple(route.states)
        if wants_shares:
            vision["expert_weights"] = tuple(route.shares)
        return vision, None if patches is None or bool_masked_pos is None else patches[bool_masked_pos]

    def encode_prompts(self, prompt_ids: torch.Tensor) -> torch.Tensor:
        """Encode class sentences, as `GMDFModel.encode_prompts`; raise ValueError without a text tower."""
        if self.config.text_config is None:
            raise ValueError("This backbone has no text tower: its class features are learned, not encoded.")
        return super().encode_prompts(prompt_ids)

    def class_features(self) -> torch.Tensor:
        """Unit features of the two classes, shape `(2, P)`."""
        return super().class_features() if self.config.text_config else normalize(self.prompt_embeds, dim=-1)

    def logits_of(self, cosines: torch.Tensor) -> torch.Tensor:
        """Scale cosines of shape `(B, 2)` by the temperature and add SigLIP's bias."""
        logits = super().logits_of(cosines)
        return logits + at_least_single(self.logit_bias) if self.config.text_config else logits

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding; quantisation at load calls this method."""
        return self.vision_model.get_input_embeddings()

    def train(self: T, mode: bool = True) -> T:
        """Switch between training and evaluation; frozen batch normalisation stays in evaluation."""
        super().train(mode)
        if self.config.freeze_batch_norm:
            for module in self.vision_model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _set_gradient_checkpointing(  # type: ignore[override]  # further options pass through
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **options: Any
    ) -> None:
        """Recompute activations with the routing of their own forward pass.

        Raises:
            ValueError: If the backbone's own checkpointing accepts no context functions for the routing.
        """
        if enable:
            if hasattr(self.vision_model, "timm_model"):
                raise ValueError("timm's gradient checkpointing cannot follow the routing of experts: switch it off.")
            plain = gradient_checkpointing_func

            def gradient_checkpointing_func(*args: Any, **kwargs: Any) -> Any:
                return plain(*args, context_fn=recomputation_contexts, **kwargs)

        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **options)


def image_size_of(vision_config: PreTrainedConfig) -> int:
    """Side in pixels of the images that a backbone was trained on; 224 if its configuration has no image size."""
    if vision_config.model_type == "siglip2_vision_model":
        return math.isqrt(vision_config.num_patches) * vision_config.patch_size
    size: Any = (getattr(vision_config, "pretrained_cfg", None) or {}).get("input_size")
    size = size[-1] if size else getattr(vision_config, "image_size", 224)
    return size if isinstance(size, int) else size[0]


__all__ = ["GMDFBackboneModel"]
