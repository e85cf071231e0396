"""Image processor from a face crop to `pixel_values`, with the same result with and without torchvision."""

import os

from transformers import AutoConfig, AutoImageProcessor
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

    @classmethod
    def of_backbone(cls, name_or_path: str | os.PathLike, image_size: int) -> "GMDFImageProcessor":
        """Processor of that size with a backbone's own pixel mean and standard deviation.

        Args:
            name_or_path: Hub id or folder of the backbone.
            image_size: Side of the images in pixels.

        Raises:
            OSError: If the backbone has neither an image processor nor a timm configuration with these values.
        """
        processor = cls.of_size(image_size)
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        if config.model_type == "timm_wrapper":
            processor.image_mean, processor.image_std = (list(config.pretrained_cfg[name]) for name in ("mean", "std"))
        else:
            own = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False, backend="pil")
            processor.image_mean, processor.image_std = own.image_mean, own.image_std
        return processor


GMDFImageProcessor.register_for_auto_class()

__all__ = ["GMDFImageProcessor"]
