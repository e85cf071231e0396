"""GM-DF: one deepfake detector meta-trained on several data sets."""

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmdf_hf.modeling.auto_gmdf import GMDFConfig, GMDFImageProcessor, GMDFModel, GMDFOutput
    from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline
    from gmdf_hf.training.adapters import add_domain, load_expert, save_expert

# A CLIP small enough to ship, pre-trained on drawn faces by scripts/pretrain_tiny_clip.py.
TINY_CLIP = Path(str(files("gmdf_hf") / "training" / "tiny_clip"))

__version__ = "0.1.0"

__all__ = [
    "TINY_CLIP",
    "DeepfakeDetectionPipeline",
    "GMDFConfig",
    "GMDFImageProcessor",
    "GMDFModel",
    "GMDFOutput",
    "add_domain",
    "load_expert",
    "save_expert",
]


def __getattr__(name: str) -> object:
    # On first use, because torch and transformers take seconds to import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    pipeline = import_module("gmdf_hf.serving.pipeline")  # registers the model and its task with transformers
    for module in (pipeline, import_module("gmdf_hf.modeling.auto_gmdf")):
        if hasattr(module, name):
            return getattr(module, name)
    return getattr(import_module("gmdf_hf.training.adapters"), name)
