"""Training transforms: random changes of a picture that preserve its class.

The paper only mirrors (`none`). `standard` is the augmentation of comparable detectors: light, blur, scale, noise and
JPEG, in the order in which camera and network apply them. Sizes are absolute pixel counts, to hide a domain's native
resolution, which often correlates with domain and class.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image, ImageFilter, ImageStat

AugmentName = Literal["none", "standard"]
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in the grey value (ITU-R BT.601)


class Transform(Protocol):
    """Protocol of a random transform of a picture."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return an RGB picture of the same size."""


@dataclass(frozen=True)
class Light:
    """Change brightness, contrast and saturation, and the gain of each colour channel.

    Attributes:
        probability: Probability of each of the two changes.
        change: Largest change of a factor from 1.
        tint: Largest change of a channel's gain from 1.
    """

    probability: float = 0.5
    change: float = 0.3
    tint: float = 0.1

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Change the light of a picture."""
        brightness, contrast, saturation, gains = 1.0, 1.0, 1.0, np.ones(3)
        if rng.random() < self.probability:
            brightness, contrast, saturation = 1 + rng.uniform(-self.change, self.change, size=3)
        if rng.random() < self.probability:
            gains = 1 + rng.uniform(-self.tint, self.tint, size=3)
        if brightness == contrast == saturation == 1 and (gains == 1).all():
            return image
        # All changes are affine in the colour, so they are one map, which Pillow applies in C.
        grey = np.asarray(GREY) @ ImageStat.Stat(image).mean
        saturate = saturation * np.eye(3) + (1 - saturation) * np.asarray([GREY] * 3)
        matrix = gains[:, None] * brightness * contrast * saturate
        offset = gains * brightness * (1 - contrast) * grey
        return image.convert("RGB", tuple(np.column_stack([matrix, offset]).flatten().tolist()))


@dataclass(frozen=True)
class Blur:
    """Gaussian blur.

    Attributes:
        probability: Probability of a blur.
        deviations: Smallest and largest standard deviation in pixels.
    """

    probability: float = 0.3
    deviations: tuple[float, float] = (0.3, 1.5)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Blur a picture."""
        if rng.random() >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(*self.deviations)))


@dataclass(frozen=True)
class Rescale:
    """Resize to fewer pixels and back, each way with a random filter.

    Attributes:
        probability: Probability of a change.
        sides: Range of the shorter side of the reduced picture, in pixels; smaller pictures are not changed.
    """

    probability: float = 0.7
    sides: tuple[int, int] = (56, 160)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Reduce a picture and enlarge it again."""
        if rng.random() >= self.probability:
            return image
        filters = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
        down, up = (filters[index] for index in rng.integers(len(filters), size=2))
        factor = rng.integers(self.sides[0], self.sides[1] + 1) / min(image.size)
        if factor >= 1:
            return image
        small = image.resize([max(round(side * factor), 1) for side in image.size], down)
        return small.resize(image.size, up)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, independent in each pixel and channel.

    Attributes:
        probability: Probability of noise.
        deviation: Largest standard deviation, on a scale of 0 to 255.
    """

    probability: float = 0.3
    deviation: float = 8.0

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Add noise to a picture."""
        if rng.random() >= self.probability:
            return image
        pixels = np.asarray(image)
        noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(0, self.deviation)
        return Image.fromarray((pixels + noise).clip(0, 255).round().astype(np.uint8))


@dataclass(frozen=True)
class Compress:
    """JPEG compression.

    Attributes:
        probability: Probability of compression.
        qualities: Lowest and highest quality.
    """

    probability: float = 0.5
    qualities: tuple[int, int] = (40, 95)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Compress a picture."""
        if rng.random() >= self.probability:
            return image
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(self.qualities[0], self.qualities[1] + 1)))
        return Image.open(file).convert("RGB")


TRANSFORMS: dict[AugmentName, tuple[Transform, ...]] = {
    "none": (),
    "standard": (Light(), Blur(), Rescale(), Noise(), Compress()),
}


def apply(transforms: Sequence[Transform], image: Image.Image, chance: int) -> Image.Image:
    """Apply transforms to a picture in order.

    Args:
        transforms: Transforms to apply.
        image: RGB picture.
        chance: Random number that determines all randomness.
    """
    rng = np.random.default_rng(chance)
    for transform in transforms:
        image = transform(image, rng)
    return image
