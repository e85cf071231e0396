"""GM-DF: one deepfake detector meta-trained on several data sets."""

from importlib.resources import files
from pathlib import Path

from gmdf_hf.modeling import GMDFConfig, GMDFImageProcessor, GMDFModel, GMDFOutput

# A CLIP small enough to ship, pre-trained on drawn faces by scripts/pretrain_tiny_clip.py.
TINY_CLIP = Path(str(files("gmdf_hf") / "assets" / "tiny_clip"))

__version__ = "0.1.0"

__all__ = ["TINY_CLIP", "GMDFConfig", "GMDFImageProcessor", "GMDFModel", "GMDFOutput"]
