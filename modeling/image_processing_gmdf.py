"""From a picture of a face to what the model sees; the same numbers with and without torchvision."""

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs


class GMDFImageProcessor(PilBackend):
    """Resize, crop to a square and normalise as CLIP does, through Pillow.

    Two backends resize to slightly different numbers, and a score must not depend on what else is installed, so there
    is one. A square face crop loses nothing to the centre crop.
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
        """Processor for a model whose images are `image_size` pixels a side."""
        return cls(size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size})


GMDFImageProcessor.register_for_auto_class()

__all__ = ["GMDFImageProcessor"]
