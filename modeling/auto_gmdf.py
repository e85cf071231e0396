"""All that this folder offers in one place, known to the auto classes of transformers."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_gmdf import GMDFConfig
from .image_processing_gmdf import GMDFImageProcessor
from .image_tokenizer_gmdf import DalleImageTokenizer, GMDFImageTokenizer, GMDFImageTokenizerConfig
from .modeling_gmdf import GMDFModel
from .outputs_gmdf import GMDFOutput
from .pipeline_gmdf import TASK, DeepfakeDetectionPipeline

AutoConfig.register("gmdf", GMDFConfig)
AutoModel.register(GMDFConfig, GMDFModel)
AutoModelForImageClassification.register(GMDFConfig, GMDFModel)
AutoImageProcessor.register(
    GMDFConfig, image_processor_classes={"pil": GMDFImageProcessor, "torchvision": GMDFImageProcessor}
)
PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=DeepfakeDetectionPipeline, pt_model=AutoModelForImageClassification, type="image"
)

__all__ = [
    "DalleImageTokenizer",
    "DeepfakeDetectionPipeline",
    "GMDFConfig",
    "GMDFImageProcessor",
    "GMDFImageTokenizer",
    "GMDFImageTokenizerConfig",
    "GMDFModel",
    "GMDFOutput",
]
