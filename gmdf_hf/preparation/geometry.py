"""Geometry of face crops, shared by data preparation and the published pipeline.

Boxes are ``(left, top, right, bottom)`` in pixels, y down. Landmarks are five points ``(x, y)`` in the order of the
ArcFace template, as the image shows them: left eye, right eye, nose, left mouth corner, right mouth corner (the order
in which YuNet and RetinaFace give them).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

BOX_SCALE = 1.3
ALIGNED_SCALE = 1.3

# Five points of the ArcFace template (112 x 112 pixels), as fractions of the crop's side.
ARCFACE_TEMPLATE = (
    np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]) / 112
)


def square_box(
    box: tuple[float, float, float, float], image_size: tuple[int, int], scale: float = BOX_SCALE
) -> tuple[int, int, int, int]:
    """Widen a face box around its centre, make it square, and keep it inside the picture.

    The square is moved, then shrunk, to stay inside, so a crop contains no padding: a uniform border would reveal the
    face's position in the frame to the detector.

    Args:
        box: Face box `(left, top, right, bottom)` in pixels.
        image_size: `(width, height)` of the picture.
        scale: Side of the square over the longer side of `box`.

    Returns:
        Box of whole pixels with equal sides.

    Raises:
        ValueError: If `box` has no area, is not finite, or lies outside the picture.
    """
    left, top, right, bottom = (float(value) for value in box)
    width, height = image_size
    if not np.isfinite([left, top, right, bottom]).all() or right <= left or bottom <= top:
        raise ValueError(f"A face box needs left < right and top < bottom, found {tuple(box)}.")
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise ValueError(f"The face box {tuple(box)} lies outside the picture of {width}x{height} pixels.")
    side = max(1, min(round(scale * max(right - left, bottom - top)), width, height))
    x = min(max(round((left + right - side) / 2), 0), width - side)
    y = min(max(round((top + bottom - side) / 2), 0), height - side)
    return x, y, x + side, y + side


def crop_box(
    image: Image.Image, box: tuple[float, float, float, float], size: int, scale: float = BOX_SCALE
) -> Image.Image:
    """Cut the widened square face box out of a picture, `size` pixels a side (see `square_box`)."""
    return image.resize(
        (size, size), Image.Resampling.BICUBIC, box=square_box(box, image.size, scale), reducing_gap=3.0
    )


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares rotation, scale and shift from `source` to `target` points (Umeyama, without reflection).

    Args:
        source: Points of shape `(N, 2)`.
        target: Points of shape `(N, 2)`.

    Returns:
        Matrix `A` of shape `(2, 3)`: ``target = A[:, :2] @ source + A[:, 2]``.

    Raises:
        ValueError: If the source points coincide.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    source_mean, target_mean = source.mean(0), target.mean(0)
    # A rotation with scale is a complex number, so the least-squares fit is a complex division.
    a = (source - source_mean) @ np.array([1, 1j])
    b = (target - target_mean) @ np.array([1, 1j])
    spread = float((a.conj() * a).real.sum())
    if spread == 0:
        raise ValueError(f"Face landmarks must be distinct points, found {source.tolist()}.")
    factor = (a.conj() * b).sum() / spread
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([linear, target_mean - linear @ source_mean])


def crop_aligned(image: Image.Image, landmarks: np.ndarray, size: int, scale: float = ALIGNED_SCALE) -> Image.Image:
    """Rotate, scale and shift a picture so that its five landmarks fall on the ArcFace template.

    Args:
        image: RGB picture.
        landmarks: Five points in pixels, shape `(5, 2)`, in the order of the template.
        size: Side of the crop in pixels.
        scale: Width of the view relative to the template's own crop.

    Returns:
        Crop of `size` x `size` pixels; black outside the picture.
    """
    template = ((ARCFACE_TEMPLATE - 0.5) / scale + 0.5) * size
    matrix = similarity(landmarks, template)
    # A face larger than the crop is reduced first: `transform` does not average pixels and would alias.
    factor = max(1, int(1 / np.hypot(matrix[0, 0], matrix[1, 0])))
    if factor > 1:
        image = image.reduce(factor)
        matrix = similarity(np.asarray(landmarks, float) / factor, template)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    return image.transform((size, size), Image.Transform.AFFINE, tuple(inverse[:2].ravel()), Image.Resampling.BICUBIC)
