"""Image processor from a face crop to `pixel_values`, with the same result with and without torchvision."""

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs


class GMDFImageProcessor(PilBackend):
    """Resize, crop to a square and normalise as CLIP does, through Pillow.

    The Pillow and torchvision backends resize slightly differently, and a score must not depend on which packages are
    installed, so only Pillow is used. The centre crop removes nothing from a square face crop.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}  # noqa: RUF012
    crop_size = {"height": 224, "width": 224}  # noqa: RUF012
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    valid_kwargs = ImagesKwargs

    @classmethod
    def of_size(cls, image_size: int) -> "GMDFImageProcessor":
        """Processor for a model with images of `image_size` pixels a side."""
        return cls(size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size})


GMDFImageProcessor.register_for_auto_class()

__all__ = ["GMDFImageProcessor"]
