"""New detectors from pre-trained backbones. Not part of a checkpoint, which holds its weights and its configuration."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from .configuration_gmdf import GMDFConfig
from .image_processing_gmdf import GMDFImageProcessor

EXPERT_SCALE = 64.0  # of new detectors; docs/evidence.md compares other values
LOADING_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "subfolder", "dtype", "attn_implementation")

# Table 6 of the paper: the sentence for a real and for a fake face. P3 puts a caption of the image before the sentence;
# the table prints "real face" in both of its columns, which could not tell the classes apart, so "fake" is used here.
PROMPT_TEMPLATES = {
    "P1": ("A photo of real face", "A photo of fake face"),
    "P2": ("This is a photo of real", "This is a photo of fake"),
    "P3": ("{caption} A photo of real face", "{caption} A photo of fake face"),
    "P4": ("Real", "Fake"),
    "P5": ("This is how a real face looks like", "This is how a fake face looks like"),
    "P6": ("This photo contains real face", "This photo contains fake face"),
    "P7": ("Real face is in this photo", "Fake face is in this photo"),
}


def from_clip(
    cls: Any, name_or_path: str | os.PathLike, domains: Sequence[str], image_size: int | None = None, **kwargs
) -> Any:
    """Make a detector from a pre-trained CLIP.

    Args:
        cls: `GMDFModel`.
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
    options, hub = _take_options(kwargs)
    clip = AutoConfig.from_pretrained(name_or_path, **hub)
    if clip.model_type != "clip":
        raise ValueError(f"`from_clip` needs a CLIP checkpoint, found model type {clip.model_type!r}.")
    start = {
        "vision_config": clip.vision_config.to_dict(),
        "text_config": clip.text_config.to_dict(),
        "projection_dim": clip.projection_dim,
        "logit_scale_init_value": clip.logit_scale_init_value,
        "expert_scale": EXPERT_SCALE,
    }
    config = GMDFConfig(domains=list(domains), **start | kwargs)
    if "prompt_ids" not in kwargs:
        set_prompts(config, AutoTokenizer.from_pretrained(name_or_path, **hub))
    model, report = cls.from_pretrained(name_or_path, config=config, output_loading_info=True, **options)
    added = (".experts.", "domain_prompts", "text_affine.", "mim_head.", "prompt_embeds")
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
        resize_images(model.vision_model, image_size)
    model.update_prompt_embeds()
    return model


def from_backbone(
    cls: Any, name_or_path: str | os.PathLike, domains: Sequence[str], image_size: int | None = None, **kwargs
) -> Any:
    """Make a detector that starts as a pre-trained image backbone.

    A CLIP is loaded by `from_clip`. SigLIP and SigLIP 2 provide text tower, temperature and bias. Any other backbone of
    transformers, or of timm through `TimmWrapper`, provides only its pooled features; the projection after them and the
    class features are new and belong to theta_O.

    Args:
        cls: `GMDFModel`.
        name_or_path: Hub id or folder of the checkpoint.
        domains: Names of the source domains, in the order of their experts.
        image_size: Side of the images in pixels, if other than the backbone's.
        **kwargs: Fields of `GMDFConfig`, and `revision, cache_dir, token, local_files_only, subfolder, dtype,
            attn_implementation` as in `from_pretrained`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If the checkpoint lacks weights, is a composite model other than CLIP and SigLIP, has no layer to
            which experts can be added, or does not accept images of this size.
    """
    options, hub = _take_options(kwargs)
    found = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    if found.model_type == "clip":
        return from_clip(cls, name_or_path, domains, image_size, **kwargs, **options)
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
    config = GMDFConfig(
        **backbone_fields(found)
        | {"domains": list(domains), "backbone_image_size": image_size, "backbone_pooler": not no_pooler}
        | kwargs
    )
    if config.text_config is not None and "prompt_ids" not in kwargs:
        set_prompts(config, AutoTokenizer.from_pretrained(name_or_path, **hub))
    config._attn_implementation = loaded.config._attn_implementation
    model = cls(config).to(loaded.dtype).eval()
    _take_weights(model, loaded)
    _check_image_size(model)
    return model


def _take_options(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Remove the options of loading from keyword arguments; return all of them, and those that locate the files."""
    options = {key: kwargs.pop(key) for key in LOADING_OPTIONS if key in kwargs}
    return options, {key: value for key, value in options.items() if key not in ("dtype", "attn_implementation")}


def backbone_fields(backbone: PreTrainedConfig) -> dict[str, Any]:
    """Fields of `GMDFConfig` for a detector based on a backbone checkpoint other than CLIP.

    Raises:
        ValueError: If the checkpoint is a composite model other than SigLIP.
    """
    shift_scale = math.exp(-GMDFConfig.logit_scale_init_value)
    fields: dict[str, Any] = {"expert_scale": EXPERT_SCALE, "text_shift_scale": shift_scale}
    vision = backbone
    if backbone.model_type in ("siglip", "siglip2"):
        vision = backbone.vision_config
        fields |= {"text_config": backbone.text_config.to_dict(), "projection_dim": vision.hidden_size}
    elif backbone.sub_configs:
        raise ValueError(
            f"GM-DF starts from CLIP, SigLIP or an image backbone; the model type {backbone.model_type!r} has the "
            f"parts {sorted(backbone.sub_configs)}."
        )
    fields["vision_config"] = vision.to_dict()
    if vision.model_type == "timm_wrapper":  # otherwise it holds 1000 class names that the backbone does not use
        fields["vision_config"] |= {"num_labels": 2, "num_classes": 0, "label_names": []}
    return fields


def set_prompts(config: GMDFConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fill `prompt_ids` with the template's sentences; those of P3 lack the caption, which comes with a batch."""
    sentences = [text.replace("{caption} ", "") for text in PROMPT_TEMPLATES[config.prompt]]
    # SigLIP takes its features from the last position; it was trained with padding to the full length.
    length = {} if config.is_clip else {"max_length": config.text.max_position_embeddings}
    config.prompt_ids = tokenizer(sentences, padding="max_length" if length else True, **length)["input_ids"]
    config.validate_architecture()


@torch.no_grad()
def _take_weights(model: Any, loaded: Any) -> None:
    """Copy a pre-trained backbone, or both towers of a contrastive one."""
    if model.config.text_config is None:
        model.vision_model.load_state_dict(loaded.state_dict())
        return
    for name in ("vision_model", "text_model"):
        getattr(model, name).load_state_dict(getattr(loaded, name).state_dict())
    for name in ("logit_scale", "logit_bias"):
        getattr(model, name).copy_(getattr(loaded, name).view(()))
    model.config.logit_scale_init_value = float(model.logit_scale)
    model.config.text_shift_scale = model.text_affine.shift_scale = math.exp(-float(model.logit_scale))
    model.update_prompt_embeds()


@torch.no_grad()
def _check_image_size(model: Any) -> None:
    side, backbone = model.config.image_size, type(model.vision_model).__name__
    try:
        model(torch.zeros(1, 3, side, side, dtype=model.dtype))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{backbone} takes no images of {side} pixels: {error}") from error


@torch.no_grad()
def resize_images(vision_model: Any, image_size: int) -> None:
    """Adapt CLIP's vision tower to another image size: interpolate the patches' position embeddings (bicubic).

    Args:
        vision_model: A `GMDFVisionModel`.
        image_size: New side in pixels.

    Raises:
        ValueError: If it is not a multiple of the patch size.
    """
    embeddings, patch_size = vision_model.embeddings, cast(int, vision_model.config.patch_size)
    if image_size % patch_size:
        raise ValueError(f"`image_size` must be a multiple of the patch size {patch_size}, found {image_size}.")
    weight = embeddings.position_embedding.weight
    old, new = embeddings.image_size // patch_size, image_size // patch_size
    grid = weight[1:].T.reshape(1, -1, old, old)
    grid = interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False).to(weight.dtype)
    positions = torch.cat([weight[:1], grid.flatten(2)[0].T])
    embeddings.position_embedding = nn.Embedding.from_pretrained(positions, freeze=False)
    position_ids = torch.arange(len(positions), device=weight.device).expand(1, -1)
    embeddings.position_ids = nn.Buffer(position_ids, persistent=False)
    embeddings.num_patches, embeddings.num_positions = new**2, len(positions)
    embeddings.image_size = vision_model.config.image_size = image_size


def image_processor_of(name_or_path: str | os.PathLike, image_size: int) -> GMDFImageProcessor:
    """Image processor with a backbone's own pixel mean and standard deviation.

    Args:
        name_or_path: Hub id or folder of the backbone.
        image_size: Side of the images in pixels.

    Raises:
        OSError: If the backbone has neither an image processor nor a timm configuration with these values.
    """
    processor = GMDFImageProcessor.of_size(image_size)
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    if config.model_type == "timm_wrapper":
        processor.image_mean, processor.image_std = (list(config.pretrained_cfg[name]) for name in ("mean", "std"))
    else:
        own = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False, backend="pil")
        processor.image_mean, processor.image_std = own.image_mean, own.image_std
    return processor
