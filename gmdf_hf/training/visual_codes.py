"""Visual codes for masked-image modelling: training the tokenizer, or loading one (decision D7)."""

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


def make_image_tokenizer(
    source: str,
    config: GMDFConfig,
    crops: Iterable[torch.Tensor],
    steps: int,
    device: torch.device,
    folder: Path,
) -> ImageTokenizer:
    """Train or load the tokenizer that a detector's masked-image head predicts the codes of.

    Args:
        source: `train`, or load what this run trained before; `dalle` for the published codebook; or a folder or hub id
            with a trained tokenizer.
        config: The detector's configuration.
        crops: Batches of the training images, at least `steps`; read by `train` alone.
        steps: Updates of the training.
        device: Where the tokenizer is to be.
        folder: Where a tokenizer trained now is saved.

    Returns:
        A frozen module whose `encode` maps images `(B, 3, H, W)` to codes `(B, patches)`.

    Raises:
        UserError: If the tokenizer does not fit the detector.
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
