"""The pipeline "deepfake-detection" inside a checkpoint: scores face crops, without the package `gmdf_hf`."""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .loading_gmdf import BrokenModelError

TASK = "deepfake-detection"
# Part of a saved model's config, so that the pipeline needs no other files.
OWN = {"impl": "pipeline_gmdf.DeepfakeDetectionPipeline", "pt": ["AutoModelForImageClassification"], "type": "image"}
CUSTOM_PIPELINES = {TASK: OWN}
BATCH_SIZE = 16
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MODES = ("L", "P", "RGB", "CMYK")
NEEDS_PACKAGE = (
    "Finding faces needs the package gmdf-hf and OpenCV: pip install 'gmdf-hf[prepare]'. Without them give square "
    'crops of one face, and say so with detector="none" (in a command: --detector none).'
)
logger = logging.get_logger(__name__)


def frames_of(source: Any) -> list[np.ndarray]:
    """Pictures of an input: a picture, or a list or 4-dimensional array of frames.

    Raises:
        ValueError: If there is none, or one cannot be read.
    """
    is_video = isinstance(source, (list, tuple)) or (isinstance(source, np.ndarray) and source.ndim == 4)
    pictures = [picture_of(picture) for picture in (source if is_video else [source])]
    if not pictures:
        raise ValueError("Expected at least one frame, found none.")
    return pictures


def picture_of(source: Any) -> np.ndarray:
    """Read a path, a PIL image or an RGB array of type uint8 as an upright RGB array of shape `(height, width, 3)`.

    The package reads more kinds of picture. Those whose conversion to RGB is a matter of choice are rejected here, so
    that a picture has one score.

    Raises:
        ValueError: If the picture is of another type or mode.
    """
    if isinstance(source, (str, os.PathLike)):
        source = Image.open(source, formats=FORMATS)
    elif isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.shape[2:] in ((), (3,)):
        source = Image.fromarray(source)
    if not isinstance(source, Image.Image):
        raise ValueError(f"Expected a path, a PIL image or an RGB array of type uint8, found {type(source).__name__}.")
    if source.mode not in MODES or source.has_transparency_data:
        raise ValueError(f"Expected an opaque picture of a mode in {MODES}, found {source.mode}: convert it to RGB.")
    return np.asarray(ImageOps.exif_transpose(source).convert("RGB"))


class DeepfakeDetectionPipeline(ChunkPipeline):
    """Scores crops of one face each (square, 1.3 times the face box).

    An input is a picture (path, PIL image or RGB array) or the frames of one person's video (list of pictures, or array
    of shape `(frames, height, width, 3)`); a list, data set or generator of inputs gives one result per input. The
    package `gmdf_hf` has a pipeline of this name that also detects faces in whole pictures, reads videos and URLs, and
    computes heatmaps; its results have these entries and more.

    The result of an input is a dict:

    * `source`: path or type of the input;
    * `label`: `fake` if `score` reaches `threshold`, `real` otherwise;
    * `score`: mean probability of `fake` over the frames (as in the evaluation), in [0, 1];
    * `threshold`: the decision threshold;
    * `faces`: `frame` and `score` of each frame;
    * `expert_weights`: share of each source domain's expert in the score, by domain name.

    Args (of the pipeline or of a call):
        detector: `none`: inputs are face crops. Any other needs the package.
        threshold: Smallest score classified as fake; the default is the model's, chosen on validation videos.
        batch_size: Frames per batch; 16.
    """

    # transformers declares these as None.
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = True  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("batch_size", BATCH_SIZE)
        super().__init__(*args, **kwargs)

    def _sanitize_parameters(  # type: ignore[override]
        self, detector: str | None = None, threshold: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must lie in [0, 1], found {threshold}.")
        before = {} if detector is None else {"detector": detector}
        return before, {}, {} if threshold is None else {"threshold": threshold}

    def preprocess(self, source: Any, detector: str | None = None) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the frames of one input, one at a time."""
        if detector is None:
            logger.warning_once(f"Every picture is taken for the crop of one face. {NEEDS_PACKAGE}")
        elif detector != "none":
            raise ImportError(NEEDS_PACKAGE)
        pictures = frames_of(source)
        for number, picture in enumerate(pictures):
            inputs = {"pixel_values": self.pixels_of(picture), "source": name_of(source), "frame": number}
            yield inputs | {"is_last": number == len(pictures) - 1}

    def pixels_of(self, crop: Any) -> torch.Tensor:
        """Pixels of a face crop for the model, shape `(1, 3, H, W)`."""
        return cast(Callable, self.image_processor)(images=crop, return_tensors="pt")["pixel_values"]

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        pixels = model_inputs.pop("pixel_values").to(self.model.dtype)
        return scores_of(self.model(pixels, output_expert_weights=True)) | model_inputs

    def postprocess(  # type: ignore[override]
        self, model_outputs: list[dict[str, Any]], threshold: float | None = None
    ) -> dict[str, Any]:
        """Combine the frames of one input into its result.

        Raises:
            BrokenModelError: If a score is not a finite number.
        """
        config, source = self.model.config, model_outputs[0]["source"]
        threshold = config.threshold if threshold is None else threshold
        faces = [{"frame": output["frame"], "score": output["score"].item()} for output in model_outputs]
        score = sum(face["score"] for face in faces) / len(faces)
        if not math.isfinite(score):
            raise BrokenModelError(f"{source}: the model gave a score that is not a finite number.")
        shares = torch.cat([output["expert_weights"] for output in model_outputs]).mean(0)
        return {
            "source": source,
            "label": "fake" if score >= threshold else "real",  # independent of the class names in the configuration
            "score": score,
            "threshold": threshold,
            "faces": faces,
            "expert_weights": dict(zip(config.domains, shares.tolist(), strict=True)),
        }


def name_of(source: object) -> str:
    """Name of an input in results and messages."""
    return str(source) if isinstance(source, (str, os.PathLike)) else f"<{type(source).__name__}>"


def scores_of(output: Any) -> dict[str, torch.Tensor]:
    """Probability of fake, shape `(B,)`, and mean share of each expert, `(B, E)`, of a `GMDFOutput`."""
    shares = torch.stack([block.float() for block in output.expert_weights]).mean(0)
    return {"score": output.logits.detach().float().softmax(-1)[:, 1], "expert_weights": shares.detach()}
