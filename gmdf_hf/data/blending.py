"""Blends of two real faces, with the mask of what was pasted: forgeries for detectors that learn from reals.

The mask is that of self-blended images without its ratio: the data sets have no landmarks for the paper's convex hull.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from gmdf_hf.data.self_blended import SelfBlend


def with_colours_of(picture: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Transfer colours: mean and standard deviation of each channel under a mask become those of another picture.

    Args:
        picture: Shape `(height, width, 3)`.
        other: Of the same shape.
        mask: Weights, shape `(height, width)`.
    """
    weights = mask[..., None] / max(float(mask.sum()), 1e-6)
    (mean, deviation), (wanted, spread) = (
        (centre := (weights * each).sum((0, 1)), np.sqrt((weights * (each - centre) ** 2).sum((0, 1))))
        for each in (picture, other)
    )
    return (picture - mean) * spread / np.maximum(deviation, 1e-3) + wanted


def blended(target: Image.Image, source: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Blend a face into a picture: ``M * F + (1 - M) * T`` with the target's colours in F (Li et al. 2020, Eq. 1).

    Args:
        target: RGB picture T.
        source: RGB picture of the face F, resized to the target's size.
        rng: Random numbers.

    Returns:
        The blend, and the mask M as a grey picture.
    """
    background = np.asarray(target, dtype=np.float32)
    share = SelfBlend().mask(rng)
    levels = Image.fromarray((255 * share / share.max()).round().astype(np.uint8))
    mask = np.asarray(levels.resize(target.size, Image.Resampling.BILINEAR), dtype=np.float32) / 255
    face = np.asarray(source.resize(target.size, Image.Resampling.BICUBIC), dtype=np.float32)
    face = with_colours_of(face, background, mask)
    pixels = mask[..., None] * face + (1 - mask[..., None]) * background
    return (
        Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)),
        Image.fromarray((255 * mask).round().astype(np.uint8)),
    )
