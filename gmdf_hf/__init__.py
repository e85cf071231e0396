"""GM-DF: one deepfake detector meta-trained on several data sets."""

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmdf_hf.modeling import DeepfakeDetectionPipeline, GMDFConfig, GMDFImageProcessor, GMDFModel, GMDFOutput

# A CLIP small enough to ship, pre-trained on drawn faces by scripts/pretrain_tiny_clip.py.
TINY_CLIP = Path(str(files("gmdf_hf") / "training" / "tiny_clip"))

__version__ = "0.1.0"

__all__ = ["TINY_CLIP", "DeepfakeDetectionPipeline", "GMDFConfig", "GMDFImageProcessor", "GMDFModel", "GMDFOutput"]


def __getattr__(name: str) -> object:
    # On first use, as in gmdf_hf.modeling; this also makes the auto classes of transformers know the model.
    if name in __all__:
        return getattr(import_module("gmdf_hf.modeling"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
