"""Visual codes for masked-image modelling: training the tokenizer, or loading one (decision D7)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from transformers import FlavaImageCodebook

from gmdf_hf.modeling import DalleImageTokenizer, GMDFImageTokenizer

DALLE_CODEBOOK = "facebook/flava-image-codebook"
FINAL_TEMPERATURE = 1 / 16  # where DALL-E's annealing of the Gumbel-Softmax ends


def train_image_tokenizer(
    tokenizer: GMDFImageTokenizer,
    batches: Iterable[torch.Tensor],
    steps: int,
    learning_rate: float = 1e-3,
    kl_weight: float = 1e-3,
) -> list[float]:
    """Fit a tokenizer to images, in place, and freeze it.

    The loss is the reconstruction's squared error plus the divergence of the codes from uniform use; the temperature of
    the Gumbel-Softmax falls from 1 to 1/16 along a cosine.

    Args:
        tokenizer: On the device to train on.
        batches: At least `steps` batches of normalised images `(B, 3, H, W)`.
        steps: Number of updates.
        learning_rate: Of Adam; falls to 0 along the same cosine.
        kl_weight: Weight of the divergence.

    Returns:
        Reconstruction error of every step.
    """
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=learning_rate)
    tokenizer.train()
    errors = []
    for step, pixel_values in zip(range(steps), batches, strict=False):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine
        temperature = FINAL_TEMPERATURE + (1 - FINAL_TEMPERATURE) * cosine
        output = tokenizer(pixel_values, temperature=temperature, kl_weight=kl_weight)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        errors.append(output.reconstruction_loss.detach())
    tokenizer.requires_grad_(False).eval()
    return torch.stack(errors).tolist()


def load_dalle_tokenizer(grid_size: int) -> DalleImageTokenizer:
    """The published DALL-E codebook for images of `grid_size` patches a side, from the hub, safetensors only."""
    codebook = FlavaImageCodebook.from_pretrained(DALLE_CODEBOOK, use_safetensors=True)
    return DalleImageTokenizer(codebook, grid_size)
