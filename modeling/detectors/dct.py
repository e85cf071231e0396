"""The discrete cosine transform as a matrix, and filters of its bands."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def dct_matrix(size: int) -> torch.Tensor:
    """Orthonormal DCT-II: ``D(x) = C x C^T`` and ``D^-1(y) = C^T y C``, shape `(size, size)`."""
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = (2 / size) ** 0.5 * torch.cos(torch.pi * (2 * n + 1) * k / (2 * size))
    matrix[0] /= 2**0.5
    return matrix.float()


def band_filters(size: int, ends: Sequence[float]) -> torch.Tensor:
    """Binary filters of neighbouring bands of a DCT, which together pass all of it.

    Args:
        size: Side of the spectrum. A frequency (u, v) lies on the antidiagonal u + v, one of 2 size - 1.
        ends: Antidiagonal at which each band but the last ends.

    Returns:
        Shape `(len(ends) + 1, size, size)`.
    """
    place = torch.arange(size)[:, None] + torch.arange(size)
    limits = torch.tensor([0, *ends, 2 * size])[:, None, None]
    return ((limits[:-1] <= place) & (place < limits[1:])).float()
