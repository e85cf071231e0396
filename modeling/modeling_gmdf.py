"""GM-DF: CLIP with domain experts, a masked-image head and per-domain text features, as a real / fake classifier."""

import math
import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel
from transformers.utils.generic import can_return_tuple

from .backbone_mixin_gmdf import LOADING_OPTIONS, ImageBackboneMixin
from .configuration_gmdf import GMDFConfig
from .experts_gmdf import DomainExperts, DomainInformationLayer, check_routing
from .loading_gmdf import check_config, check_files, check_weights, refusing_damage
from .mim_gmdf import MaskedImageHead
from .outputs_gmdf import GMDFOutput
from .text_gmdf import TEXT_TOWERS, ClassSentencesMixin, DomainTextAffine, at_least_single, mark_stale
from .vision_gmdf import initialize_experts

# theta_E of Algorithm 1, trained in the inner step. All other parameters are theta_O.
EXPERT_PARAMETERS = (".experts.", "domain_prompts", "text_affine.")
TRAINING_ONLY = ("text_model.", "text_projection.", "mim_head.")  # left out of the slim form
FORWARD_OPTIONS = {"output_hidden_states", "output_attentions", "output_expert_weights", "return_dict"}


class GMDFModel(ClassSentencesMixin, ImageBackboneMixin, CLIPPreTrainedModel):  # type: ignore[misc]
    """One detector for many deepfake domains (GM-DF, arXiv 2406.20078).

    A new model from `from_clip` equals CLIP: its features and zero-shot logits are `CLIPModel`'s on every route,
    because all GM-DF additions start at zero effect. Parameter names are CLIP's, so a CLIP checkpoint loads without key
    mapping. A new model from `from_backbone` has the pooled features of that backbone on every route.

    Decisions that the paper leaves open: D4, class features depend on sentences and domain prompts only (except for
    template P3), so they are computed once and kept in the buffer `prompt_embeds`; D6, the temperature multiplies
    cosines; D8, the slim form.

    Args:
        config: See `GMDFConfig`.
    """

    config: GMDFConfig  # type: ignore[assignment]  # the base class names CLIP's
    base_model_prefix = "gmdf"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    # The loss is a batch mean, so `Trainer` must divide it by the number of gradient accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: GMDFConfig):
        super().__init__(config)
        feature_size, state_size = self._make_backbone(config)
        self.visual_projection = nn.Linear(feature_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.domain_prompts = nn.Parameter(torch.empty(config.num_experts, config.prompt_size))
        sizes = (config.projection_dim, config.num_experts, config.prompt_size)
        self.text_affine = DomainTextAffine(*sizes, shift_scale=config.text_shift_scale)
        prompt_embeds = torch.zeros(2, config.projection_dim)
        if config.text_config is None:
            self.prompt_embeds = nn.Parameter(prompt_embeds)  # learned: there are no sentences to encode
        else:
            self.register_buffer("prompt_embeds", prompt_embeds)
        if config.has_siglip_text:
            self.logit_bias = nn.Parameter(torch.zeros(()))
        if self.has_text_tower:
            self.text_model = TEXT_TOWERS[config.text.model_type]._from_config(config.text)
            self.text_projection: nn.Module = nn.Identity()
            if config.is_clip:
                self.text_projection = nn.Linear(config.text.hidden_size, config.projection_dim, bias=False)
        if not config.slim and config.patch_size is not None:
            eps = getattr(config.vision_config, "layer_norm_eps", 1e-6)
            mask_size = state_size if config.is_clip or self.backbone_experts.is_transformer else 3
            self.mim_head = MaskedImageHead(state_size, config.codebook_size, config.patch_size, eps, mask_size)
        self._freeze_text_tower()
        self._prompt_embeds_stale = self.has_text_tower
        self.register_load_state_dict_post_hook(mark_stale)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GMDFModel):
            factor = self.config.initializer_factor
            if self.config.has_siglip_text:  # its pooled features need no projection
                init.copy_(module.visual_projection.weight, torch.eye(*module.visual_projection.weight.shape))
                init.zeros_(module.logit_bias)
            else:
                init.normal_(module.visual_projection.weight, std=module.visual_projection.in_features**-0.5 * factor)
            if self.config.is_clip and module.has_text_tower:
                projection = cast(nn.Linear, module.text_projection)
                init.normal_(projection.weight, std=projection.in_features**-0.5 * factor)
            init.constant_(module.logit_scale, float(self.config.logit_scale_init_value))
            init.normal_(module.domain_prompts, std=self.config.prompt_size**-0.5)
            if self.config.text_config is None:
                init.normal_(module.prompt_embeds, std=self.config.projection_dim**-0.5)
            else:
                init.zeros_(module.prompt_embeds)
        elif isinstance(module, (DomainExperts, DomainInformationLayer)):
            initialize_experts(module)
        elif isinstance(module, DomainTextAffine):
            init.zeros_(module.gain_weight)
            init.zeros_(module.shift_weight)
        elif isinstance(module, MaskedImageHead):
            init.zeros_(module.mask_token)
            for linear in (module.code_classifier, module.pixel_predictor):
                init.normal_(linear.weight, std=0.02)
                init.zeros_(linear.bias)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers declares more names, which pass through `kwargs`
        cls, pretrained_model_name_or_path: str | os.PathLike, *args, config=None, use_safetensors=True, **kwargs
    ) -> Any:
        """Load a saved detector, as `PreTrainedModel.from_pretrained`; safetensors only.

        Raises:
            ValueError: If `use_safetensors` is False, or the checkpoint is not a GM-DF and no `config` is given:
                transformers would fill the missing fields with defaults.
            BrokenModelError: If the files are damaged, or weights are missing, unexpected or not finite.
        """
        if use_safetensors is False:
            raise ValueError("GM-DF loads safetensors only: leave `use_safetensors` out, found False.")
        name, wants_report = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        with refusing_damage(name):
            hub = {key: kwargs[key] for key in LOADING_OPTIONS[:5] if key in kwargs}
            if config is None:
                fields = PreTrainedConfig.get_config_dict(name, **hub)[0]
                check_config(fields, name)
                if (found := fields.get("model_type")) != GMDFConfig.model_type:
                    raise ValueError(
                        f"{name} is no GM-DF checkpoint: expected the model type {GMDFConfig.model_type!r}, "
                        f"found {found!r}; `GMDFModel.from_backbone` starts from a CLIP or another image backbone."
                    )
            check_files(name)
            pair: Any = super().from_pretrained(
                name, *args, config=config, use_safetensors=True, output_loading_info=True, **kwargs
            )
            model, report = pair
            if not wants_report:  # callers that request the report check it themselves: a CLIP lacks the experts
                check_weights(model, report, name)
        model._freeze_text_tower()  # loading creates new parameters, all of them trainable
        return (model, report) if wants_report else model

    def _freeze_text_tower(self) -> None:
        """Freeze the text tower; users may unfreeze it (decision D4)."""
        for part in (self.text_model, self.text_projection) if self.has_text_tower else ():
            part.requires_grad_(False)

    @classmethod
    def from_clip(
        cls, name_or_path: str | os.PathLike, domains: Sequence[str], image_size: int | None = None, **kwargs
    ) -> "GMDFModel":
        """Make a detector from a pre-trained CLIP.

        Args:
            name_or_path: Hub id or folder of a CLIP checkpoint with its tokenizer.
            domains: Names of the source domains, in the order of their experts.
            image_size: Side of the images in pixels, if other than the checkpoint's: its position embeddings are
                interpolated.
            **kwargs: Fields of `GMDFConfig`, and `revision, cache_dir, token, local_files_only, subfolder, dtype,
                attn_implementation` as in `from_pretrained`.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: If the checkpoint is not a CLIP, or lacks weights.
        """
        options = {key: kwargs.pop(key) for key in LOADING_OPTIONS if key in kwargs}
        hub = {key: value for key, value in options.items() if key not in ("dtype", "attn_implementation")}
        clip = AutoConfig.from_pretrained(name_or_path, **hub)
        if clip.model_type != "clip":
            raise ValueError(f"`from_clip` needs a CLIP checkpoint, found model type {clip.model_type!r}.")
        config = GMDFConfig.from_clip(clip, domains, **kwargs)
        if "prompt_ids" not in kwargs:
            config.set_prompts(AutoTokenizer.from_pretrained(name_or_path, **hub))
        model, report = cls.from_pretrained(name_or_path, config=config, output_loading_info=True, **options)
        added = (*EXPERT_PARAMETERS, "mim_head.", "prompt_embeds")
        missing = [name for name in report["missing_keys"] if not any(part in name for part in added)]
        if missing or report["mismatched_keys"]:
            raise ValueError(
                f"The checkpoint {name_or_path} does not hold a whole CLIP: missing {missing[:5]}, "
                f"of another shape {list(report['mismatched_keys'])[:5]}."
            )
        if "text_shift_scale" not in kwargs:
            config.text_shift_scale = model.config.text_shift_scale = math.exp(-model.logit_scale.item())
            model.text_affine.shift_scale = config.text_shift_scale
        if image_size is not None and image_size != config.image_size:
            model.vision_model.resize_images(image_size)
        model.update_prompt_embeds()
        return model

    def expert_parameters(self) -> dict[str, nn.Parameter]:
        """theta_E of Algorithm 1 by name: experts, their DILs and alphas, prompt vectors, text affines."""
        return {n: p for n, p in self.named_parameters() if any(part in n for part in EXPERT_PARAMETERS)}

    def domain_id(self, domain: str) -> int:
        """Return the index of a source domain's expert; raise ValueError if the model has no such domain."""
        if domain not in self.config.domains:
            raise ValueError(f"This model knows the domains {self.config.domains}, found {domain!r}.")
        return self.config.domains.index(domain)

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """theta_O of Algorithm 1 by name: every other parameter that is not frozen."""
        experts = self.expert_parameters()
        return {n: p for n, p in self.named_parameters() if n not in experts and p.requires_grad}

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        domain_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        prompt_ids: torch.Tensor | None = None,
        active_experts: Sequence[int] | None = None,
        **kwargs,
    ) -> GMDFOutput:
        """Score images.

        Args:
            pixel_values: Normalised images, shape `(B, 3, image_size, image_size)`.
            domain_ids: Source domain of each image, shape `(B,)`; each image then uses its own expert only. None, for
                an unseen domain, aggregates the active experts.
            labels: 0 real, 1 fake, shape `(B,)`.
            bool_masked_pos: True for masked patches, shape `(B, patches)`; enables the masked-image predictions. Keep
                it on the CPU: reading it from a GPU would stall the GPU.
            prompt_ids: Class sentences of each image, shape `(B, 2, length)`: template P3 with its captions.
            active_experts: Experts the aggregated route may use; None for all.
            **kwargs: `output_hidden_states`, `output_attentions`, `output_expert_weights`, `return_dict`.

        Returns:
            See `GMDFOutput`.

        Raises:
            ValueError: If shapes, domain ids or experts are not the model's.
            TypeError: For an unknown keyword.
        """
        if unknown := sorted(set(kwargs) - FORWARD_OPTIONS):
            raise TypeError(f"GMDFModel takes no {unknown[0]!r}; besides its arguments, {sorted(FORWARD_OPTIONS)}.")
        check_routing(self.config.domains, pixel_values.shape[0], domain_ids, active_experts)
        if bool_masked_pos is not None and self.config.slim:
            raise ValueError("The slim form of a checkpoint has no masked-image head: load the full form for masks.")
        vision, patches = self.encode_images(pixel_values, bool_masked_pos, domain_ids, active_experts, **kwargs)
        projected = self.visual_projection(vision.pooler_output)
        sentences = self.class_features() if prompt_ids is None else self.encode_prompts(prompt_ids)
        # Decision D19: cosines and temperature in half precision would give many images the same score.
        with torch.autocast(projected.device.type, enabled=False):
            image_embeds = normalize(at_least_single(projected), dim=-1)
            text_embeds = self.text_affine(sentences, self.domain_prompts, domain_ids, active_experts)
            text_embeds = text_embeds.expand(len(image_embeds), -1, -1)
            cosines = torch.einsum("bp,bcp->bc", image_embeds, text_embeds)
            logits = at_least_single(self.logit_scale).exp() * cosines
            if self.config.has_siglip_text:
                logits = logits + at_least_single(self.logit_bias)
        codes, pixels = None, None
        if patches is not None and bool_masked_pos is not None:
            hidden = bool_masked_pos.flatten().nonzero().flatten().to(pixel_values.device, non_blocking=True)
            codes, pixels = self.mim_head(patches.flatten(0, 1)[hidden])
        return GMDFOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            mim_code_logits=codes,
            mim_pixels=pixels,
            hidden_states=vision.get("hidden_states"),
            attentions=vision.get("attentions"),
            expert_weights=vision.get("expert_weights"),
        )

    def save_pretrained(  # type: ignore[override]  # `slim` is ours; the others pass through `kwargs`
        self, save_directory: str | os.PathLike, slim: bool = False, **kwargs
    ) -> None:
        """Save weights, config and the code that loads them without this package.

        Args:
            save_directory: Folder to write.
            slim: Leave out text tower and masked-image head; the logits do not change (decision D8).
            **kwargs: As in `PreTrainedModel.save_pretrained`.
        """
        from .pipeline_gmdf import CUSTOM_PIPELINES  # here, so that loading a model does not import the pipeline

        if self._prompt_embeds_stale:
            self.update_prompt_embeds()
        # The saved config must name both auto classes and the pipeline; transformers writes only one of them.
        self.config.auto_map = {
            "AutoConfig": "configuration_gmdf.GMDFConfig",
            "AutoModel": "modeling_gmdf.GMDFModel",
            "AutoModelForImageClassification": "modeling_gmdf.GMDFModel",
        }
        self.config.custom_pipelines = CUSTOM_PIPELINES
        was_slim = self.config.slim
        if slim and not was_slim:
            state = kwargs.pop("state_dict", None) or self.state_dict()
            kwargs["state_dict"] = {key: value for key, value in state.items() if not key.startswith(TRAINING_ONLY)}
        self.config.slim = was_slim or slim
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config.slim = was_slim
            del self.config.custom_pipelines


GMDFConfig.register_for_auto_class()
GMDFModel.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["GMDFModel"]
