"""Self-blended images (SBI, Shiohara & Yamasaki 2022): fakes made from reals, for training.

Two copies of a real face, one of them changed, are blended with a deformed mask of the face: the result has the seams
of a face swap and nothing of any one generator. Prepared domains hold no landmarks, so an ellipse in the crop takes the
place of their convex hull: a crop is 1.3 times as wide as the face box and centred on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter, map_coordinates

from gmdf_hf.data.transforms import Light

SIDE = 96  # of the mask before it is enlarged to the picture, in pixels
RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # of blending, equally likely


@dataclass(frozen=True)
class SelfBlend:
    """Make a self-blended image of a real face: ``I_s M + I_t (1 - M)`` with source I_s, target I_t and mask M.

    Colour, detail (fewer pixels or sharpening) and place of the source or the target change as in the paper, without
    its change of hue. The ellipse varies in place of the landmarks' augmentation.

    Attributes:
        centre: Centre of the ellipse, (x, y) in parts of the picture.
        radii: Its radii, (x, y) in parts of the picture.
        variation: Largest change of radii, as a part, and of the centre, in parts of the picture.
        shift: Largest shift of the source, (x, y) in parts of the picture.
        smallest: Smallest factor of the source's size; the largest is its reciprocal.
        elastic: Largest shift of a mask's pixel, in parts of its side.
        blurs: Smallest and largest standard deviation of the mask's two blurs, in parts of its side.
    """

    centre: tuple[float, float] = (0.5, 0.53)
    radii: tuple[float, float] = (0.3, 0.37)
    variation: float = 0.1
    shift: tuple[float, float] = (0.03, 0.015)
    smallest: float = 0.95
    elastic: float = 0.06
    blurs: tuple[float, float] = (0.01, 0.04)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return the self-blended image of an RGB picture, in its size."""
        source, target = image, image
        if rng.random() < 0.5:
            source = changed(image, rng)
        else:
            target = changed(image, rng)
        levels = (255 * self.mask(rng)).round().astype(np.uint8)
        mask = Image.fromarray(levels).resize(image.size, Image.Resampling.BILINEAR)
        # Output to input: scaled about the middle, then shifted.
        scale = rng.uniform(self.smallest, 1 / self.smallest)
        moves = rng.uniform(-1, 1, size=2) * self.shift * np.asarray(image.size)
        x, y = (1 - scale) * np.asarray(image.size) / 2 + moves
        place = (scale, 0, float(x), 0, scale, float(y))
        moved, where = (
            each.transform(image.size, Image.Transform.AFFINE, place, Image.Resampling.BILINEAR)
            for each in (source, mask)
        )
        return Image.composite(moved, target, where)

    def mask(self, rng: np.random.Generator) -> np.ndarray:
        """Share of the source in each pixel, shape `(SIDE, SIDE)`, in [0, 1].

        The ellipse is deformed, blurred, cut to where it is still 1 and blurred again: a first blur wider than the
        second shrinks it, a narrower one lets it grow. Then it is multiplied by the ratio of blending.
        """
        grid = np.mgrid[:SIDE, :SIDE].astype(float)
        centre = np.asarray(self.centre) + rng.uniform(-1, 1, size=2) * self.variation / 4
        radii = np.asarray(self.radii) * (1 + rng.uniform(-1, 1, size=2) * self.variation)
        y, x = ((grid + 0.5) / SIDE - centre[::-1, None, None]) / radii[::-1, None, None]
        ellipse = (x**2 + y**2 <= 1).astype(float)
        shifts = gaussian_filter(rng.uniform(-1, 1, size=grid.shape), (0, SIDE / 12, SIDE / 12))
        shifts *= rng.uniform(0, self.elastic) * SIDE / np.abs(shifts).max()
        deformed = map_coordinates(ellipse, grid + shifts, order=1)
        first, second = rng.uniform(*self.blurs, size=2) * SIDE
        inside = gaussian_filter(deformed, first, truncate=2.0) > 1 - 1e-6
        return rng.choice(RATIOS) * gaussian_filter(inside.astype(float), second, truncate=2.0).clip(0, 1)


def changed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change a picture's light, and take detail from it or sharpen it."""
    image = Light(probability=1.0)(image, rng)
    if rng.random() < 0.5:
        return image.filter(ImageFilter.UnsharpMask(radius=rng.uniform(1, 2), percent=int(rng.integers(50, 151))))
    factor = rng.uniform(0.25, 0.5)
    small = image.resize([max(round(side * factor), 1) for side in image.size], Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BILINEAR)
