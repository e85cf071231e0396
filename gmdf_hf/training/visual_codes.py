"""Visual codes for masked-image modelling: train or load the tokenizer (decision D7)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import FlavaImageCodebook

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.files import replace_folder
from gmdf_hf.modeling import GMDFConfig
from gmdf_hf.training.image_tokenizer import (
    DalleImageTokenizer,
    GMDFImageTokenizer,
    GMDFImageTokenizerConfig,
    ImageTokenizer,
)

DALLE_CODEBOOK = "facebook/flava-image-codebook"
FINAL_TEMPERATURE = 1 / 16  # final Gumbel-Softmax temperature of DALL-E


def train_image_tokenizer(
    tokenizer: GMDFImageTokenizer,
    batches: Iterable[torch.Tensor],
    steps: int,
    learning_rate: float = 1e-3,
    kl_weight: float = 1e-3,
) -> list[float]:
    """Train a tokenizer on images, in place, and freeze it.

    The loss is the squared reconstruction error plus the KL divergence of the code distribution from the uniform one.
    The temperature of the Gumbel-Softmax follows a cosine from 1 to 1/16.

    Args:
        tokenizer: Tokenizer on the training device.
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


def make_image_tokenizer(
    source: str,
    config: GMDFConfig,
    crops: Iterable[torch.Tensor],
    steps: int,
    device: torch.device,
    folder: Path,
) -> ImageTokenizer:
    """Train or load the tokenizer whose codes a detector's masked-image head predicts.

    Args:
        source: `train` to train a tokenizer or load the one this run trained before; `dalle` for the published
            codebook; or a folder or hub id with a trained tokenizer.
        config: The detector's configuration.
        crops: Batches of the training images, at least `steps`; used only by `train`.
        steps: Number of training updates.
        device: Device of the tokenizer.
        folder: Output folder of a newly trained tokenizer.

    Returns:
        A frozen module whose `encode` maps images `(B, 3, H, W)` to codes `(B, patches)`.

    Raises:
        UserError: If the tokenizer does not match the detector.
    """
    if config.patch_size is None or config.image_size % config.patch_size:
        raise UserError(
            f"L_mim hides patches of {config.patch_size} pixels in images of {config.image_size}: choose an image_size "
            "that is a multiple of it, or set mim_weight to 0."
        )
    source = str(folder) if source == "train" and folder.exists() else source
    if source == "dalle":
        codebook = FlavaImageCodebook.from_pretrained(DALLE_CODEBOOK, use_safetensors=True)
        tokenizer: ImageTokenizer = DalleImageTokenizer(codebook, config.image_size // config.patch_size)
        found = (codebook.config.vocab_size, config.image_size, config.patch_size)
    elif source == "train":
        trained = GMDFImageTokenizer(
            GMDFImageTokenizerConfig(
                codebook_size=config.codebook_size, image_size=config.image_size, patch_size=config.patch_size
            )
        )
        trained.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the signature
        batches = (batch.to(device) for batch in tqdm(crops, total=steps, desc="image tokenizer"))
        train_image_tokenizer(trained, batches, steps)
        trained.save_pretrained(new := folder.with_name(f"{folder.name}.new"))
        replace_folder(new, folder)
        return trained
    else:
        tokenizer = loaded = GMDFImageTokenizer.from_pretrained(source, use_safetensors=True)
        tokenizer.requires_grad_(False).eval()
        found = (loaded.config.codebook_size, loaded.config.image_size, loaded.config.patch_size)
    expected = (config.codebook_size, config.image_size, config.patch_size)
    if found != expected:
        raise UserError(
            f"The image tokenizer {source!r} has codes, image size and patch size {found}, expected {expected}, the "
            "detector's codebook_size, image size and patch size."
        )
    tokenizer.to(device)  # type: ignore[arg-type]
    return tokenizer
