"""Image processor from a face crop to `pixel_values`, with the same result with and without torchvision."""

from transformers import CLIPImageProcessorPil


class GMDFImageProcessor(CLIPImageProcessorPil):
    """Resize, crop to a square and normalise as CLIP does, through Pillow.

    The Pillow and torchvision backends resize slightly differently, and a score must not depend on which packages are
    installed, so only Pillow is used. The centre crop removes nothing from a square face crop.
    """

    @classmethod
    def of_size(cls, image_size: int) -> "GMDFImageProcessor":
        """Processor for a model with images of `image_size` pixels a side."""
        return cls(size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size})


GMDFImageProcessor.register_for_auto_class()

__all__ = ["GMDFImageProcessor"]
