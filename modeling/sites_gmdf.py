"""Architecture-dependent parts of an image backbone: expert sites, patch embedding, patch size, inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pixel_unshuffle
from transformers import PreTrainedModel

CONVOLUTIONAL_SITES = 3  # number of last stages of a convolutional network that get experts
ATTENTION, FEED_FORWARD = ("attn", "attention", "self_attn"), ("mlp", "ffn", "feed_forward")


@dataclass(frozen=True)
class Site:
    """A module to whose output experts are added.

    Attributes:
        module: Feed-forward module of a transformer block, or stage of a convolutional network.
        width: Size D of its tokens, or channels of its map.
        block: The transformer block; None in a convolutional network.
        norm: LayerNorm before the feed-forward module; None in a convolutional network.
    """

    module: nn.Module
    width: int
    block: nn.Module | None = None
    norm: nn.Module | None = None


def transformer_sites(backbone: nn.Module) -> list[Site]:
    """Feed-forward modules of transformer blocks; empty for other networks."""
    sites = []
    for blocks in backbone.modules():
        if not isinstance(blocks, (nn.ModuleList, nn.Sequential)):
            continue
        for block in blocks:
            children = dict(block.named_children())
            module = next((children[name] for name in FEED_FORWARD if name in children), None)
            norms: list[Any] = [c for name, c in children.items() if "norm" in name and hasattr(c, "weight")]
            if module is not None and norms and any(name in children for name in ATTENTION):
                sites.append(Site(module, norms[-1].weight.numel(), block, norms[-1]))
    return sites


def convolutional_sites(backbone: PreTrainedModel) -> list[Site]:
    """Last stages of a convolutional network; empty if the network does not list its stages."""
    network = getattr(backbone, "timm_model", None)
    if network is not None:
        stages = getattr(network, "feature_info", ())  # timm lists the last module of each resolution
        sites = [Site(network.get_submodule(stage["module"]), stage["num_chs"]) for stage in stages]
    else:
        widths = getattr(backbone.config, "hidden_sizes", ())
        lists = [module for name, module in backbone.named_modules() if name.rpartition(".")[2] == "stages"]
        sites = [Site(*pair) for pair in zip(lists[0], widths, strict=True)] if lists else []
    return sites[-CONVOLUTIONAL_SITES:]


def patch_embedding(backbone: nn.Module) -> nn.Module | None:
    """The map from patches of pixels to tokens; None if a transformer has another stem."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            return module if module.kernel_size == module.stride else None
        if name == "embeddings.patch_embedding" and isinstance(module, nn.Linear):
            return module
    return None


def patch_size_of(backbone: PreTrainedModel, embedding: Any, is_transformer: bool) -> int | None:
    """Side in pixels of a token, or of a position of the last map; None if the backbone does not support masking."""
    if isinstance(embedding, nn.Conv2d):
        return embedding.kernel_size[0]
    if is_transformer:
        return None if embedding is None else math.isqrt(embedding.in_features // 3)
    network = getattr(backbone, "timm_model", None)
    if network is not None:
        return list(network.feature_info)[-1]["reduction"]
    return 2 ** (len(backbone.config.hidden_sizes) + 1)  # stem of stride 4, then stride 2 in each stage but the first


def backbone_inputs(backbone: PreTrainedModel, pixel_values: torch.Tensor) -> dict[str, Any]:
    """Arguments of a backbone for images of shape `(B, 3, H, W)`.

    SigLIP 2 of any resolution takes patches, row by row and channel last, and the number of rows and columns; other
    backbones interpolate their position embeddings only on request.
    """
    if backbone.config.model_type == "siglip2_vision_model":
        side, (batch, _, height, width) = backbone.config.patch_size, pixel_values.shape
        rows, columns = height // side, width // side
        # Channels of `pixel_unshuffle` are ordered (channel, row, column).
        patches = pixel_unshuffle(pixel_values, side).unflatten(1, (3, side * side)).permute(0, 3, 4, 2, 1)
        return {
            "pixel_values": patches.reshape(batch, rows * columns, -1),
            "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.int64, device=pixel_values.device),
            # One entry for the batch: positions are computed once, and the exported batch size stays dynamic.
            "spatial_shapes": torch.tensor([[rows, columns]]),
        }
    inputs: dict[str, Any] = {"pixel_values": pixel_values}
    if "interpolate_pos_encoding" in signature(backbone.forward).parameters:
        inputs["interpolate_pos_encoding"] = backbone.config.image_size != pixel_values.shape[-1]
    return inputs
