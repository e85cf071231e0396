"""GM-DF: CLIP with domain experts, a masked-image head and per-domain text features, as a real / fake classifier."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_gmdf import IN_PACKAGE, GMDFConfig
from .loading_gmdf import check_weights
from .mim_gmdf import MaskedImageHead
from .outputs_gmdf import GMDFOutput
from .text_gmdf import ClassSentencesMixin, DomainTextAffine, at_least_single, mark_stale
from .vision_gmdf import GMDFVisionModel, check_routing, expert_settings

# theta_E of Algorithm 1, trained in the inner step. All other parameters are theta_O.
EXPERT_PARAMETERS = (".experts.", "domain_prompts", "text_affine.")
TRAINING_ONLY = ("text_model.", "text_projection.", "mim_head.")  # left out of the slim form
FORWARD_OPTIONS = {"output_hidden_states", "output_attentions", "output_expert_weights", "return_dict"}


class GMDFModel(ClassSentencesMixin, CLIPPreTrainedModel):
    """One detector for many deepfake domains (GM-DF, arXiv 2406.20078).

    A new model from `from_clip` equals CLIP: its features and zero-shot logits are `CLIPModel`'s on every route,
    because all GM-DF additions start at zero effect. Parameter names are CLIP's, so a CLIP checkpoint loads without key
    mapping. With another image backbone the object is a `GMDFBackboneModel`.

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

    def __new__(cls, config: GMDFConfig | None = None, *args, **kwargs):
        # The class follows from the configuration, so that checkpoints on CLIP need no code of other backbones.
        if cls is GMDFModel and config is not None and not config.is_clip:
            cls = _package("backbone_model").GMDFBackboneModel
        return super().__new__(cls)

    def __init__(self, config: GMDFConfig):
        super().__init__(config)
        feature_size, state_size, mask_size = self._make_backbone(config)
        self.visual_projection = nn.Linear(feature_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.domain_prompts = nn.Parameter(torch.empty(config.num_experts, config.prompt_size))
        sizes = (config.projection_dim, config.num_experts, config.prompt_size)
        self.text_affine = DomainTextAffine(*sizes, shift_scale=config.text_shift_scale)
        self._make_class_features(config)
        if not config.slim and config.patch_size is not None:
            eps = getattr(config.vision_config, "layer_norm_eps", 1e-6)
            self.mim_head = MaskedImageHead(state_size, config.codebook_size, config.patch_size, eps, mask_size)
        self._freeze_text_tower()
        self._prompt_embeds_stale = self.has_text_tower
        self.register_load_state_dict_post_hook(mark_stale)
        if IN_PACKAGE:
            _package("activation").fuse_activations(self)
        self.post_init()

    def _make_backbone(self, config: GMDFConfig) -> tuple[int, int, int]:
        """Make the image backbone; return the widths of its features, of its last hidden states and of a mask token."""
        self.vision_model: Any = GMDFVisionModel._from_config(config.vision, **expert_settings(config))
        return (config.vision.hidden_size,) * 3

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GMDFModel):
            for projection in (module.visual_projection, getattr(module, "text_projection", None)):
                if isinstance(projection, nn.Linear):
                    std = projection.in_features**-0.5 * self.config.initializer_factor
                    init.normal_(projection.weight, std=std)
            init.constant_(module.logit_scale, float(self.config.logit_scale_init_value))
            init.normal_(module.domain_prompts, std=self.config.prompt_size**-0.5)
            init.zeros_(module.prompt_embeds)
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
        with _package("untrusted").checked_loading(name, config, kwargs) if IN_PACKAGE else nullcontext():
            pair: Any = super().from_pretrained(
                name, *args, config=config, use_safetensors=True, output_loading_info=True, **kwargs
            )
            model, report = pair
            if not wants_report:  # callers that request the report check it themselves: a CLIP lacks the experts
                check_weights(model, report, name)
        model._freeze_text_tower()  # loading creates new parameters, all of them trainable
        return (model, report) if wants_report else model

    @classmethod
    def from_clip(
        cls, name_or_path: str | os.PathLike, domains: Sequence[str], image_size: int | None = None, **kwargs
    ) -> "GMDFModel":
        """Make a detector from a pre-trained CLIP: `from_backbone`, for CLIP only."""
        return _package("construction").from_clip(cls, name_or_path, domains, image_size, **kwargs)

    @classmethod
    def from_backbone(
        cls, name_or_path: str | os.PathLike, domains: Sequence[str], image_size: int | None = None, **kwargs
    ) -> "GMDFModel":
        """Make a detector from a pre-trained image backbone; see `gmdf_hf.modeling.construction_gmdf.from_backbone`."""
        make = _package("construction").from_backbone
        return make(cls, name_or_path, domains, image_size, **kwargs)

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
        # One copy to the device, not one in every block.
        active = None if active_experts is None else torch.as_tensor(active_experts, device=pixel_values.device)
        if bool_masked_pos is not None and self.config.slim:
            raise ValueError("The slim form of a checkpoint has no masked-image head: load the full form for masks.")
        vision, masked = self.encode_images(pixel_values, bool_masked_pos, domain_ids, active, **kwargs)
        projected = self.visual_projection(vision.pooler_output)
        sentences = self.class_features() if prompt_ids is None else self.encode_prompts(prompt_ids)
        # Decision D19: cosines and temperature in half precision would give many images the same score.
        with torch.autocast(projected.device.type, enabled=False):
            image_embeds = normalize(at_least_single(projected), dim=-1)
            text_embeds = self.text_affine(sentences, self.domain_prompts, domain_ids, active)
            text_embeds = text_embeds.expand(len(image_embeds), -1, -1)
            cosines = torch.einsum("bp,bcp->bc", image_embeds, text_embeds)
            logits = self.logits_of(cosines)
        codes, pixels = (None, None) if masked is None else self.mim_head(masked)
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

    def encode_images(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        domain_ids: torch.Tensor | None = None,
        active_experts: torch.Tensor | Sequence[int] | None = None,
        **kwargs,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor | None]:
        """Return image features before the projection; the arguments are those of `forward`.

        Returns:
            Output of the backbone, and the last hidden states of the K masked patches, `(K, D)`, or None.
        """
        # The features are the class token's: of the last block's other tokens, only those of masked patches are read.
        # Cut off from their image, these have no own expert and no share.
        count, masked = pixel_values.shape[0], None
        read = torch.arange(count, device=pixel_values.device) * self.vision_model.embeddings.num_positions
        whole = kwargs.get("output_hidden_states", self.vision_model.config.output_hidden_states)
        if bool_masked_pos is not None:
            patches = bool_masked_pos.flatten().nonzero().flatten().to(read.device, non_blocking=True)
            masked = patches + patches // bool_masked_pos.shape[-1] + 1  # a class token before each image's patches
            read = torch.cat([read, masked])
            whole = whole or domain_ids is not None or kwargs.get("output_expert_weights")
        vision = self.vision_model(
            pixel_values,
            domain_prompts=self.domain_prompts,
            bool_masked_pos=bool_masked_pos,
            mask_token=None if bool_masked_pos is None else self.mim_head.mask_token,
            domain_ids=domain_ids,
            active_experts=active_experts,
            read_tokens=None if whole else read,
            **kwargs,
        )
        tokens = vision.last_hidden_state
        if masked is None:
            return vision, None
        return vision, tokens.flatten(0, 1).index_select(0, masked) if whole else tokens[count:, 0]

    def logits_of(self, cosines: torch.Tensor) -> torch.Tensor:
        """Scale cosines of shape `(B, 2)` by the temperature (decision D6)."""
        return at_least_single(self.logit_scale).exp() * cosines

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding; quantisation at load calls this method."""
        return self.vision_model.embeddings.patch_embedding

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
        own = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = {
            "AutoConfig": "configuration_gmdf.GMDFConfig",
            "AutoModel": own,
            "AutoModelForImageClassification": own,
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


def _package(name: str) -> Any:
    """Import a module that is not copied to checkpoints, or only to those on other backbones."""
    try:
        return import_module(f".{name}_gmdf", __package__)
    except ModuleNotFoundError as error:
        raise ImportError("New detectors are made by the package gmdf-hf: pip install gmdf-hf") from error


GMDFConfig.register_for_auto_class()
GMDFModel.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["GMDFModel"]
