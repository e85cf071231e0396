"""The five distortions of Table 10, at five levels each.

The paper names the kinds (compression, blur, contrast, saturation, pixelation) but no strengths. The factors of
contrast and saturation, the block sizes of pixelation and the widths of the blur (a sixth of its kernels of 7 to 21
pixels) are those in the published code of DeeperForensics-1.0, the field's reference, in pixels of the stored crop. Two
differ from that code: its "contrast" darkens, this one keeps the mean; its pixelation interpolates between blocks, this
one does not. It compresses whole videos; this module compresses frames as JPEG.
"""

from __future__ import annotations

import io

from PIL import Image, ImageEnhance, ImageFilter
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

LEVELS = 5
DISTORTIONS: dict[str, tuple[float, ...]] = {
    "compress": (80, 60, 40, 25, 15),  # JPEG quality
    "blur": (1.2, 1.5, 2.2, 2.8, 3.5),  # standard deviation in pixels
    "contrast": (0.85, 0.725, 0.6, 0.475, 0.35),  # factor
    "saturate": (0.4, 0.3, 0.2, 0.1, 0.0),  # factor
    "pixelate": (2, 3, 4, 5, 6),  # side of a block in pixels
}


def distort(image: Image.Image, kind: str, level: int) -> Image.Image:
    """Distort an image.

    Args:
        image: RGB image.
        kind: One of `DISTORTIONS`.
        level: 1 (mildest) to 5.

    Returns:
        An image of the same size.

    Raises:
        ValueError: If kind or level is unknown.
    """
    if kind not in DISTORTIONS:
        raise ValueError(f"The distortions are {', '.join(DISTORTIONS)}, found {kind!r}.")
    if level not in range(1, LEVELS + 1):
        raise ValueError(f"The level of a distortion is 1 to {LEVELS}, found {level!r}.")
    strength = DISTORTIONS[kind][level - 1]
    if kind == "compress":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(strength))
        return Image.open(file).convert("RGB")
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength))
    if kind == "contrast":
        return ImageEnhance.Contrast(image).enhance(strength)
    if kind == "saturate":
        return ImageEnhance.Color(image).enhance(strength)
    width, height = (max(side // int(strength), 1) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def parse_distortion(text: str) -> tuple[str, int]:
    """Parse `kind:level`, for example `blur:3`.

    Raises:
        ValueError: If kind or level is unknown.
    """
    kind, _, level = text.partition(":")
    if not level.isdigit():
        raise ValueError(f"A distortion is `kind:level` with a level of 1 to {LEVELS}, found {text!r}.")
    distort(Image.new("RGB", (8, 8)), kind, int(level))
    return kind, int(level)


class DistortingProcessor:
    """Image processor that distorts each image first.

    Args:
        processor: Image processor of the model.
        kind: One of `DISTORTIONS`.
        level: 1 to 5.
    """

    def __init__(self, processor: BaseImageProcessor, kind: str, level: int):
        self.processor, self.kind, self.level = processor, kind, level

    def __call__(self, images: Image.Image, **kwargs) -> BatchFeature:
        """Process one distorted image."""
        return self.processor(images=distort(images, self.kind, self.level), **kwargs)
