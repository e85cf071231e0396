"""Masked-image modelling: choice of the masked patches, and the pixels of a patch (Eq. 7, decision D7)."""

from __future__ import annotations

import torch
from torch import nn


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut images of shape `(B, 3, H, W)` into patches `(B, patches, 3 * patch_size**2)`, channel-major, row by row."""
    unfolded = nn.functional.unfold(pixel_values, patch_size, stride=patch_size)
    return unfolded.transpose(1, 2)


def draw_mask(
    batch_size: int, grid_size: int, ratio: float, strategy: str = "random", generator: torch.Generator | None = None
) -> torch.Tensor:
    """Choose the patches to mask, the same number in every image.

    Args:
        batch_size: Number of images B.
        grid_size: Patches along a side; an image has `grid_size**2`.
        ratio: Share of patches to mask, in (0, 1); at least one patch is masked and at least one is visible.
        strategy: `random` masks patches independently of each other. `block` masks a square around a random centre: the
            patches with the smallest Chebyshev distance to it, clipped at the border.
        generator: Random number generator.

    Returns:
        True for masked patches, shape `(B, grid_size**2)`.

    Raises:
        ValueError: If `ratio` or `strategy` is out of range, or an image has only one patch.
    """
    patches = grid_size**2
    if not 0 < ratio < 1:
        raise ValueError(f"`ratio` must lie between 0 and 1, found {ratio}.")
    if patches < 2:
        raise ValueError(f"Masking needs at least 2 patches an image, found {patches}.")
    hidden = min(max(round(ratio * patches), 1), patches - 1)
    noise = torch.rand(batch_size, patches, generator=generator)
    if strategy == "block":
        centres = torch.rand(batch_size, 1, 2, generator=generator) * grid_size
        axis = torch.arange(grid_size) + 0.5
        positions = torch.cartesian_prod(axis, axis)  # (patches, 2)
        # Noise of less than one patch only breaks ties between patches of equal distance.
        noise = (positions - centres).abs().amax(-1) + 0.1 * noise
    elif strategy != "random":
        raise ValueError(f"`strategy` must be 'random' or 'block', found {strategy!r}.")
    order = noise.argsort(dim=1)
    return torch.zeros(batch_size, patches, dtype=torch.bool).scatter(1, order[:, :hidden], True)
