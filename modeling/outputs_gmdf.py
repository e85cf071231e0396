"""Output of a GM-DF model."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class GMDFOutput(ModelOutput):
    """Output of a `GMDFModel`.

    Attributes:
        loss: Cross-entropy, a scalar; when `labels` are given.
        logits: ``exp(logit_scale) * cos(image, text_c)`` for real and fake, shape `(B, 2)`.
        image_embeds: Unit image features, shape `(B, P)`.
        text_embeds: Unit class features that each image is compared with, shape `(B, 2, P)`.
        mim_code_logits: Code scores of the masked patches, in the order of `bool_masked_pos.nonzero()`, shape `(K, T)`.
        mim_pixels: Pixels of the masked patches, shape `(K, 3 * patch_size**2)`, channel-major.
        hidden_states: Input of the first block and output of each, each `(B, T, D)`.
        attentions: Attention of each block, each `(B, heads, T, T)`; needs `attn_implementation="eager"`.
        expert_weights: Share of each expert in a block's expert part, `(B, E)`; CLIP's last block: at its class token.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    mim_code_logits: torch.Tensor | None = None
    mim_pixels: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    expert_weights: tuple[torch.Tensor, ...] | None = None
