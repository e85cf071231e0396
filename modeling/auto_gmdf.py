"""Registers the package's classes with the auto classes of transformers; a saved checkpoint registers its own."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from . import detectors  # noqa: F401  registers the comparison detectors
from .configuration_gmdf import GMDFConfig
from .image_processing_gmdf import GMDFImageProcessor
from .modeling_gmdf import GMDFModel
from .outputs_gmdf import GMDFOutput

AutoConfig.register("gmdf", GMDFConfig)
AutoModel.register(GMDFConfig, GMDFModel)
AutoModelForImageClassification.register(GMDFConfig, GMDFModel)
AutoImageProcessor.register(
    GMDFConfig, image_processor_classes={"pil": GMDFImageProcessor, "torchvision": GMDFImageProcessor}
)

__all__ = ["GMDFConfig", "GMDFImageProcessor", "GMDFModel", "GMDFOutput"]
