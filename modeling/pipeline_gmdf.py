"""The pipeline "deepfake-detection" inside a checkpoint: scores face crops, without the package `gmdf_hf`."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .loading_gmdf import check_processor

TASK = "deepfake-detection"
# Part of a saved model's config, so that the pipeline needs no other files.
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_gmdf.DeepfakeDetectionPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    }
}
BATCH_SIZE = 16
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MODES = ("L", "P", "RGB", "CMYK")
NEEDS_PACKAGE = (
    "Finding faces needs the package gmdf-hf and OpenCV: pip install 'gmdf-hf[prepare]'. Without them give square "
    'crops of one face, and say so with detector="none".'
)
logger = logging.get_logger(__name__)


class ScoreError(ValueError):
    """The model gives no finite score; the message names the input."""

    exit_code = 1
    hint = "The checkpoint is damaged: download it again, or load another one."


def frames_of(source: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Yield number and picture of each frame of an input: a picture, or a list or 4-dimensional array of frames."""
    is_video = isinstance(source, (list, tuple)) or (isinstance(source, np.ndarray) and source.ndim == 4)
    yield from enumerate(picture_of(picture) for picture in (source if is_video else [source]))


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


def whole_pictures(frames: Iterable[tuple[int, np.ndarray]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Treat every frame as the crop of one face.

    Returns:
        The entry of `faces` for each frame, with its crop; and `frames_read`.
    """
    faces = []
    for number, picture in frames:
        height, width = picture.shape[:2]
        place = {"box": [0.0, 0.0, float(width), float(height)], "crop_box": [0, 0, width, height]}
        crop = Image.fromarray(picture)
        found = {"frame": number, "seconds": None, **place, "detection_score": 1.0, "turned": 0}
        faces.append(found | {"person": 0, "crop": crop})
    return faces, {"frames_read": len(faces)}


class DeepfakeDetectionPipeline(ChunkPipeline):
    """Scores crops of one face each (square, 1.3 times the face box).

    An input is a picture (path, PIL image or RGB array) or the frames of one person's video (list of pictures, or array
    of shape `(frames, height, width, 3)`); a list, data set or generator of inputs gives one result per input. The
    package `gmdf_hf` has a pipeline of this name that also detects faces in whole pictures, reads videos and URLs, and
    computes heatmaps.

    The result of an input is a dict:

    * `source`: path or type of the input;
    * `label`: `fake` if `score` reaches `threshold`, `real` otherwise, None if there is no score;
    * `score`: the largest score of all persons, None without a face; a person's score is the mean probability of `fake`
      over their frames (as in the evaluation), in [0, 1];
    * `threshold`: the decision threshold;
    * `face_found`: whether there is a face with a score;
    * `faces_found`, `faces_scored`: number of faces in all frames, and of those with a score; the others are
      `unassigned_faces`, not assigned to a person: `frame, box, detection_score` of each;
    * `frames_read`: 1 for a picture;
    * `notes`: warnings about defects of the input that did not prevent reading;
    * `persons`: each person's `person, score, label, frames`;
    * `faces`: each face, a dict with `frame, seconds, person, box, crop_box, detection_score, turned, score, label,
      expert_weights`;
    * `expert_weights`: share of each source domain's expert in the verdict, by domain name.

    Args (of the pipeline or of a call):
        detector: `none`: inputs are face crops. Any other needs the package.
        threshold: Smallest score classified as fake; the default is the model's, chosen on validation videos.
        batch_size: Faces per batch; 16.
    """

    # transformers declares these as None.
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = True  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("batch_size", BATCH_SIZE)
        super().__init__(*args, **kwargs)
        check_processor(self.image_processor, str(self.model.config.name_or_path))

    @property
    def default_threshold(self) -> float:
        """Threshold of the model."""
        return self.model.config.threshold

    @property
    def expert_names(self) -> list[str]:
        """Domain of each expert."""
        return self.model.config.domains

    def _sanitize_parameters(  # type: ignore[override]
        self, detector: str | None = None, threshold: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must lie in [0, 1], found {threshold}.")
        return _given(detector=detector), {}, _given(threshold=threshold)

    def preprocess(self, source: Any, detector: str | None = None) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the faces of one input, one at a time."""
        if detector is None:
            logger.warning_once(f"Every picture is taken for the crop of one face. {NEEDS_PACKAGE}")
        elif detector != "none":
            raise ImportError(NEEDS_PACKAGE)
        yield from self.inputs_of(source, *whole_pictures(frames_of(source)))

    def inputs_of(self, source: Any, faces: list[dict[str, Any]], found: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the model's inputs for each face; without a face, one empty entry, as the pipeline needs at least one.

        Args:
            source: The input.
            faces: Its faces, each with its crop (see `whole_pictures`).
            found: Further entries of the result.
        """
        name = str(source) if isinstance(source, (str, os.PathLike)) else f"<{type(source).__name__}>"
        note = {"source": name} | found
        for position, face in enumerate(faces):
            pixels = cast(Callable, self.image_processor)(images=face["crop"], return_tensors="pt")["pixel_values"]
            yield {"pixel_values": pixels, "face": face, "note": note, "is_last": position == len(faces) - 1}
        if not faces:
            blank = Image.new("RGB", (64, 64))
            pixels = cast(Callable, self.image_processor)(images=blank, return_tensors="pt")["pixel_values"]
            yield {"pixel_values": pixels, "face": None, "note": note, "is_last": True}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        pixels = model_inputs.pop("pixel_values").to(self.model.dtype)
        return scores_of(self.model(pixels, output_expert_weights=True)) | model_inputs

    def postprocess(  # type: ignore[override]
        self, model_outputs: list[dict[str, Any]], threshold: float | None = None
    ) -> dict[str, Any]:
        """Combine the faces of one input into its result.

        Raises:
            ScoreError: If a score is not a finite number.
        """
        threshold = self.default_threshold if threshold is None else threshold
        domains = self.expert_names

        def label(score: float) -> str:
            return "fake" if score >= threshold else "real"  # independent of the class names in the configuration

        faces = []
        for output in model_outputs:
            if output["face"] is not None:
                score = output["score"].item()
                face = output["face"] | {
                    "score": score,
                    "label": label(score),
                    "expert_weights": dict(zip(domains, output["expert_weights"][0].tolist(), strict=True)),
                }
                crop = face.pop("crop")
                if "heatmap" in output:
                    face |= {"heatmap": output["heatmap"][0].numpy(), "crop": crop}
                faces.append(face)
        note = model_outputs[0]["note"]
        if not all(math.isfinite(face["score"]) for face in faces):
            raise ScoreError(f"{note['source']}: the model gave a score that is not a finite number.")
        persons = []
        for person in sorted({face["person"] for face in faces}):
            scores = [face["score"] for face in faces if face["person"] == person]
            mean = sum(scores) / len(scores)
            persons.append({"person": person, "score": mean, "label": label(mean), "frames": len(scores)})
        unassigned = note.get("unassigned_faces", [])
        worst = max(persons, key=lambda person: person["score"], default=None)
        shares = [face["expert_weights"] for face in faces if worst is not None and face["person"] == worst["person"]]
        return {
            "source": note["source"],
            "label": None if worst is None else worst["label"],
            "score": None if worst is None else worst["score"],
            "threshold": threshold,
            "face_found": bool(faces),
            "faces_found": len(faces) + len(unassigned),
            "faces_scored": len(faces),
            "frames_read": note["frames_read"],
            "persons": persons,
            "faces": faces,
            "unassigned_faces": unassigned,
            "notes": note.get("notes", []),
            "expert_weights": {name: sum(share[name] for share in shares) / len(shares) for name in domains if shares},
        }


def scores_of(output: Any) -> dict[str, torch.Tensor]:
    """Probability of fake, shape `(B,)`, and mean share of each expert, `(B, E)`, of a `GMDFOutput`."""
    shares = torch.stack([block.float() for block in output.expert_weights]).mean(0)
    return {"score": output.logits.detach().float().softmax(-1)[:, 1], "expert_weights": shares.detach()}


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
