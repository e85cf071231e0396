"""Blends of two real faces, with the mask of what was pasted: forgeries for detectors that learn from reals.

The faces are crops, in which a face has its usual place. So the mask starts as an ellipse there instead of the convex
hull of landmarks, which the data sets do not have.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

GRID = 4  # points a side of the random deformation, as in Li et al. (2020), section 3.2
DEFORMATION = 0.15  # standard deviation of its shifts, in half sides of the picture
CENTRE = 0.1  # largest shift of the ellipse's centre from the picture's, in half sides
RADII = ((0.35, 0.6), (0.45, 0.75))  # ranges of its half axes to the right and downwards, in half sides
BLUR = (0.01, 0.06)  # range of the standard deviation of the mask's blur, in sides


def face_mask(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw the mask of a face: an ellipse, randomly deformed on a 4 x 4 grid, with a soft edge.

    Args:
        size: Width and height in pixels.
        rng: Random numbers.

    Returns:
        Values in [0, 1], shape `(height, width)`.
    """
    width, height = size
    shifts = DEFORMATION * rng.standard_normal((2, GRID, GRID)).astype(np.float32)
    du, dv = (np.asarray(Image.fromarray(shift).resize(size, Image.Resampling.BICUBIC)) for shift in shifts)
    u, v = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    (cu, cv), (ru, rv) = rng.uniform(-CENTRE, CENTRE, 2), (rng.uniform(*axis) for axis in RADII)
    inside = ((u + du - cu) / ru) ** 2 + ((v + dv - cv) / rv) ** 2 <= 1
    blur = rng.uniform(*BLUR) * min(size)
    picture = Image.fromarray((255 * inside).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(picture, dtype=np.float32) / 255


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
    mask = face_mask(target.size, rng)
    face = np.asarray(source.resize(target.size, Image.Resampling.BICUBIC), dtype=np.float32)
    face = with_colours_of(face, background, mask)
    pixels = mask[..., None] * face + (1 - mask[..., None]) * background
    return (
        Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)),
        Image.fromarray((255 * mask).round().astype(np.uint8)),
    )
