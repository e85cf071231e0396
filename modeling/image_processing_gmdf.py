"""From a picture of a face to what the model sees; the same numbers with and without torchvision."""

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .geometry_gmdf import crop_aligned, crop_box


class GMDFImageProcessor(PilBackend):
    """Resize, crop to a square and normalise as CLIP does, through Pillow.

    Two backends resize to slightly different numbers, and a score must not depend on what else is installed, so there
    is one. A square face crop (see `crop_face` and `geometry_gmdf`) loses nothing to the centre crop.
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

    def crop_face(
        self,
        image: Image.Image,
        box: tuple[float, float, float, float] | None = None,
        landmarks: np.ndarray | None = None,
    ) -> Image.Image:
        """Cut a face out of a picture at the size of the model's images.

        Args:
            image: RGB picture.
            box: Face box `(left, top, right, bottom)` in pixels; the crop is its square, widened 1.3 times.
            landmarks: Five points of shape `(5, 2)` instead: the crop is aligned with the ArcFace template.

        Raises:
            ValueError: If not exactly one of `box` and `landmarks` is given.
        """
        if (box is None) == (landmarks is None):
            raise ValueError(f"Give either `box` or `landmarks`, found box={box} and landmarks={landmarks}.")
        size = self.crop_size["height"]
        return crop_box(image, box, size) if box is not None else crop_aligned(image, landmarks, size)


GMDFImageProcessor.register_for_auto_class()

__all__ = ["GMDFImageProcessor"]
