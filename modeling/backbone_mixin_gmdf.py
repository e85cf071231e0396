"""Image backbone of a `GMDFModel`: construction, loading of pre-trained weights, forward pass."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .backbones_gmdf import BackboneExperts, Route, recomputation_contexts
from .configuration_gmdf import GMDFConfig
from .vision_gmdf import GMDFVisionModel

T = TypeVar("T", bound="ImageBackboneMixin")
LOADING_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "subfolder", "dtype", "attn_implementation")


class ImageBackboneMixin:
    """Image side of a `GMDFModel`: CLIP's tower with experts in its blocks, or another backbone with added experts.

    Batch normalisation keeps its loaded statistics in training too (`freeze_batch_norm`): the statistics of a batch
    that mixes domains fit none of them, and the inner step would change the statistics with which theta_E' is
    evaluated.
    """

    config: Any
    vision_model: Any
    backbone_experts: BackboneExperts
    domain_prompts: nn.Parameter
    mim_head: nn.Module

    def _make_backbone(self, config: GMDFConfig) -> tuple[int, int]:
        """Make the backbone and its experts; return the width of its features and of its last hidden states."""
        settings = {
            "num_experts": config.num_experts,
            "bottleneck_size": config.expert_bottleneck_size,
            "prompt_size": config.prompt_size,
            "dil": config.dil,
            "num_prompt_tokens": config.num_prompt_tokens,
            "aggregation": config.aggregation,
            "scale": config.expert_scale,
        }
        vision = config.vision
        if config.is_clip:
            self.vision_model = GMDFVisionModel._from_config(vision, **settings)
            return vision.hidden_size, vision.hidden_size
        self.vision_model = AutoModel.from_config(vision)
        if not config.backbone_pooler:
            self.vision_model.pooler = None
        self.backbone_experts = BackboneExperts(self.vision_model, **settings)
        config.backbone_patch_size = self.backbone_experts.patch_size
        return self.backbone_experts.feature_size, self.backbone_experts.map_size

    @classmethod
    def from_backbone(
        cls: type[T], name_or_path: str | os.PathLike, domains: Sequence[str], image_size: int | None = None, **kwargs
    ) -> T:
        """Make a detector that starts as a pre-trained image backbone.

        A CLIP is loaded by `from_clip`. SigLIP and SigLIP 2 provide text tower, temperature and bias. Any other
        backbone of transformers, or of timm through `TimmWrapper`, provides only its pooled features; the projection
        after them and the class features are new and belong to theta_O.

        Args:
            name_or_path: Hub id or folder of the checkpoint.
            domains: Names of the source domains, in the order of their experts.
            image_size: Side of the images in pixels, if other than the backbone's.
            **kwargs: Fields of `GMDFConfig`, and `revision, cache_dir, token, local_files_only, subfolder, dtype,
                attn_implementation` as in `from_pretrained`.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: If the checkpoint lacks weights, has no layer to which experts can be added, or does not accept
                images of this size.
        """
        options = {key: kwargs.pop(key) for key in LOADING_OPTIONS if key in kwargs}
        hub = {key: value for key, value in options.items() if key not in ("dtype", "attn_implementation")}
        found = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **hub)
        if found.model_type == "clip":
            return cls.from_clip(name_or_path, domains, image_size, **kwargs, **options)  # type: ignore[attr-defined]
        if options.get("attn_implementation") == "sdpa":
            del options["attn_implementation"]  # the default; models without attention reject an explicit value
        loaded, report = AutoModel.from_pretrained(
            name_or_path, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
        missing = {name for name in report["missing_keys"] if not name.endswith("num_batches_tracked")}
        no_pooler = {name for name in missing if name.startswith("pooler.")}
        if missing - no_pooler or report["mismatched_keys"]:
            raise ValueError(
                f"The checkpoint {name_or_path} does not hold a whole {type(loaded).__name__}: missing "
                f"{sorted(missing - no_pooler)[:5]}, of another shape {list(report['mismatched_keys'])[:5]}."
            )
        if no_pooler:
            loaded.pooler = None
        config = GMDFConfig.from_backbone(
            found, domains, backbone_image_size=image_size, backbone_pooler=not no_pooler, **kwargs
        )
        if config.text_config is not None and "prompt_ids" not in kwargs:
            config.set_prompts(AutoTokenizer.from_pretrained(name_or_path, **hub))
        config._attn_implementation = loaded.config._attn_implementation
        model: Any = cls(config).to(loaded.dtype).eval()  # type: ignore[call-arg, attr-defined]
        model._take_weights(loaded)
        model._check_image_size()
        return model

    @torch.no_grad()
    def _take_weights(self, loaded: PreTrainedModel) -> None:
        """Copy a pre-trained backbone, or both towers of a contrastive one."""
        if self.config.text_config is None:
            self.vision_model.load_state_dict(loaded.state_dict())
            return
        model: Any = self
        for name in ("vision_model", "text_model"):
            getattr(model, name).load_state_dict(getattr(loaded, name).state_dict())
        for name in ("logit_scale", "logit_bias"):
            getattr(model, name).copy_(getattr(loaded, name).view(()))
        self.config.logit_scale_init_value = float(model.logit_scale)
        self.config.text_shift_scale = model.text_affine.shift_scale = math.exp(-float(model.logit_scale))
        model.update_prompt_embeds()

    @torch.no_grad()
    def _check_image_size(self) -> None:
        side, model = self.config.image_size, self
        try:
            model(torch.zeros(1, 3, side, side, dtype=self.dtype))  # type: ignore[operator, attr-defined]
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(f"{type(self.vision_model).__name__} takes no images of {side} pixels: {error}") from error

    def encode_images(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        domain_ids: torch.Tensor | None = None,
        active_experts: Sequence[int] | None = None,
        **kwargs,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor | None]:
        """Return image features before the projection; the arguments are those of the model's forward pass.

        Returns:
            Output of the backbone, and the last hidden states of all patches, `(B, patches, D)`, if some are masked.
        """
        mask_token: Any = None if bool_masked_pos is None else self.mim_head.mask_token
        if self.config.is_clip:
            vision = self.vision_model(
                pixel_values,
                domain_prompts=self.domain_prompts,
                bool_masked_pos=bool_masked_pos,
                mask_token=mask_token,
                domain_ids=domain_ids,
                active_experts=active_experts,
                **kwargs,
            )
            return vision, None if bool_masked_pos is None else vision.last_hidden_state[:, 1:]
        route = Route(self.domain_prompts, domain_ids, active_experts, bool_masked_pos, mask_token)
        attentions = {"output_attentions": True} if kwargs.get("output_attentions") else {}
        vision, patches = self.backbone_experts.run(self.vision_model, pixel_values, route, **attentions)
        if kwargs.get("output_hidden_states"):
            vision["hidden_states"] = tuple(route.states)
        if kwargs.get("output_expert_weights"):
            vision["expert_weights"] = tuple(route.shares)
        return vision, patches

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding; quantisation at load calls this method."""
        if self.config.is_clip:
            return self.vision_model.embeddings.patch_embedding
        return self.vision_model.get_input_embeddings()

    def train(self: T, mode: bool = True) -> T:
        """Switch between training and evaluation; frozen batch normalisation stays in evaluation."""
        super().train(mode)  # type: ignore[misc]
        if self.config.freeze_batch_norm:
            for module in self.vision_model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **options: Any
    ) -> None:
        """Recompute activations with the routing of their own forward pass.

        Raises:
            ValueError: If the backbone's own checkpointing accepts no context functions for the routing.
        """
        if enable and not self.config.is_clip:
            if hasattr(self.vision_model, "timm_model"):
                raise ValueError("timm's gradient checkpointing knows no routes of experts: leave it off.")
            plain = gradient_checkpointing_func

            def gradient_checkpointing_func(*args: Any, **kwargs: Any) -> Any:
                return plain(*args, context_fn=recomputation_contexts, **kwargs)

        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **options)  # type: ignore[misc]
