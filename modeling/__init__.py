"""The model, its configuration and its image processing: the files that travel with every checkpoint."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .configuration_gmdf import GMDFConfig
from .modeling_gmdf import GMDFModel, GMDFOutput

AutoConfig.register("gmdf", GMDFConfig)
AutoModel.register(GMDFConfig, GMDFModel)
AutoModelForImageClassification.register(GMDFConfig, GMDFModel)

__all__ = ["GMDFConfig", "GMDFModel", "GMDFOutput"]
