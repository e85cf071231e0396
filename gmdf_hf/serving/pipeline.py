"""The pipeline "deepfake-detection" with face detectors, videos, URLs and heatmaps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any, cast

import torch
from PIL import Image
from transformers import AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

import gmdf_hf.modeling.auto_gmdf  # noqa: F401  registers the model with the auto classes
from gmdf_hf.common.labels import class_names, fake_class
from gmdf_hf.evaluation.aggregation import PERSON_SCORES, PersonScore
from gmdf_hf.evaluation.classifier import find_operating_point, is_gmdf
from gmdf_hf.evaluation.operating_point import OperatingPoint
from gmdf_hf.evaluation.precision import scoring_in
from gmdf_hf.modeling import pipeline_gmdf
from gmdf_hf.modeling.loading_gmdf import BrokenModelError
from gmdf_hf.modeling.untrusted_gmdf import check_processor
from gmdf_hf.preparation.media import Media, open_media
from gmdf_hf.serving.ahead import read_ahead
from gmdf_hf.serving.decisions import decide
from gmdf_hf.serving.faces import FaceFinder, FoundFaces, crop_side, load_finder
from gmdf_hf.serving.files import announcing
from gmdf_hf.serving.heatmaps import evidence_map, heatmap
from gmdf_hf.serving.inputs import INPUT_ERRORS, open_input
from gmdf_hf.serving.verdict import scored_face, verdict


class DeepfakeDetectionPipeline(pipeline_gmdf.DeepfakeDetectionPipeline):
    """Detects the faces of pictures and videos and scores each face.

    The model is a GM-DF or any other image classifier with two classes whose names tell real from fake. Only a GM-DF
    has `expert_weights`; without a threshold in its configuration the threshold is 0.5.

    Inputs are paths, `http(s)` URLs, PIL images, RGB arrays, frames of a video (a list of pictures, or an array of
    shape `(frames, height, width, 3)`), or a list, data set or generator of them; the results of a generator are
    streamed. Faces of all frames and files share batches.

    The result of an input is a dict:

    * `source`: path, URL or type of the input;
    * `label`: `fake` if `score` reaches `threshold`, `real` otherwise, None if there is no score;
    * `score`: the largest score of all persons, None without a face; a person's score is the mean probability of `fake`
      over their frames (as in the evaluation), in [0, 1];
    * `threshold`: the decision threshold;
    * `face_found`: whether there is a face with a score;
    * `faces_found`, `faces_scored`: number of faces in all frames, and of those with a score; the others are
      `unassigned_faces`, not assigned to a person: `frame, box, detection_score` of each;
    * `frames_read`: 1 for a picture;
    * `notes`: warnings about defects of the input that did not prevent reading;
    * `persons`: each person's `person, score, label, frames`. Person 0 is the most prominent one; people in different
      shots are different persons unless they look very similar;
    * `faces`: each face, a dict with `frame, seconds, person, box, crop_box, detection_score, turned` (rotation in
      degrees at which it was detected), `score, label, expert_weights`, and with `return_heatmap` its `crop` and a
      `heatmap`, an array over `crop_box` with positive values for fake and negative values for real;
    * `expert_weights`: share of each source domain's expert in the verdict, by domain name;
    * `error`: only with `on_error="return"`: the error message, or None.

    Args (of the pipeline or of a call):
        detector: Face detector, `yunet` (the default), `retinaface` or `haar`; `none` if inputs are crops of one face
            (square, 1.3 times the face box).
        detector_weights: Local file with the detector's weights, instead of those on the hub.
        fake_label: Name of the model's fake class, if it does not tell; only when the pipeline is made.
        num_frames: Number of evenly spaced frames to read from a video; 32.
        threshold: Smallest score classified as fake; the default is the model's, chosen on validation videos.
        person_score: Score of a person from those of the frames: `mean`, `top` or `segment` (see
            `gmdf_hf.evaluation.aggregation.aggregate`); the default is the operating point's, else `mean`.
        return_heatmap: Whether to add the map of each face.
        private_urls: Whether to fetch URLs with private IP addresses (loopback, private ranges); off.
        max_seconds: Maximum time for the frames of one video; unlimited by default.
        open_file: Function that opens files; a server with untrusted files passes `IsolatedReader.open`.
        on_slow: Called with the name of an input that takes ten seconds to read.
        on_error: `raise`, or `return` the message and go on with the next input.
        batch_size: Faces per batch; 16.

    Further entries of a result are those of `gmdf_hf.serving.decisions.decide`: with an operating point, which
    `gmdf calibrate` stores beside the model, its threshold is the default, labels may be `uncertain`, and there is a
    calibrated `probability`.

    Attributes:
        scoring_dtype: Data type of the model's layers; float32 unless another one is set.
        exported: `ExportedDetector` to run instead of the model, which then gives heatmaps only.
        operating_point: Operating point in use, read from the model's folder when the pipeline is made, or None.
    """

    def __init__(self, *args, fake_label: str | None = None, **kwargs):
        self._finders: dict[tuple[str, str | None], FaceFinder] = {}
        super().__init__(*args, **kwargs)
        check_processor(self.image_processor, str(self.model.config.name_or_path))
        self.fake = fake_class(class_names(self.model.config), fake_label)
        self.is_gmdf, self.scoring_dtype = is_gmdf(self.model), torch.float32
        self.exported: Callable[[torch.Tensor], Any] | None = None
        name = str(self.model.config.name_or_path)
        # Another one may be set; None turns it off.
        self.operating_point: OperatingPoint | None = (
            find_operating_point(self.model, name) if os.path.isdir(name) else None
        )

    @property
    def default_threshold(self) -> float:
        """Threshold of the operating point, else of the model, else 0.5."""
        if self.operating_point is not None:
            return self.operating_point.threshold
        return getattr(self.model.config, "threshold", 0.5)

    @property
    def expert_names(self) -> list[str]:
        """Domain of each expert; empty for a model without experts and for an export."""
        return self.model.config.domains if self.gives_shares else []

    @property
    def gives_shares(self) -> bool:
        """Whether the model gives each expert's share; an export has logits only."""
        return self.is_gmdf and self.exported is None

    def _sanitize_parameters(  # type: ignore[override]  # further options, all by name
        self,
        detector_weights: str | None = None,
        num_frames: int | None = None,
        return_heatmap: bool | None = None,
        private_urls: bool | None = None,
        max_seconds: float | None = None,
        on_error: str | None = None,
        person_score: PersonScore | None = None,
        open_file: Callable[..., Media] | None = None,
        on_slow: Callable[[str], object] | None = None,
        **options: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"`num_frames` must be at least 1, found {num_frames}.")
        if on_error not in (None, "raise", "return"):
            raise ValueError(f"`on_error` must be 'raise' or 'return', found {on_error!r}.")
        if person_score not in (None, *PERSON_SCORES):
            raise ValueError(f"`person_score` must be one of {list(PERSON_SCORES)}, found {person_score!r}.")
        before, during, after = super()._sanitize_parameters(**options)
        reading = {
            "detector_weights": detector_weights,
            "num_frames": num_frames,
            "private_urls": private_urls,
            "max_seconds": max_seconds,
            "on_error": on_error,
            "open_file": open_file,
            "on_slow": on_slow,
        }
        before |= {name: value for name, value in reading.items() if value is not None}
        deciding = {"on_error": on_error, "person_score": person_score}
        after |= {name: value for name, value in deciding.items() if value is not None}
        return before, during if return_heatmap is None else {"return_heatmap": return_heatmap}, after

    def get_iterator(
        self, inputs: Iterable[Any], num_workers: int, batch_size: int, preprocess_params: dict[str, Any], *params: Any
    ) -> Iterator[dict[str, Any]]:
        """Results of several inputs; the faces of the next batch are found while the model scores."""
        find_faces = partial(self.find_faces, **preprocess_params)
        found = read_ahead(find_faces, inputs, lambda found: max(1, len(found.faces)), batch_size)
        return super().get_iterator(found, num_workers, batch_size, {}, *params)

    def find_faces(
        self,
        source: Any,
        detector: str | None = None,
        on_error: str = "raise",
        detector_weights: str | None = None,
        num_frames: int = 32,
        private_urls: bool = False,
        max_seconds: float | None = None,
        open_file: Callable[..., Media] = open_media,
        on_slow: Callable[[str], object] | None = None,
    ) -> FoundFaces:
        """Read one input and find its faces; the arguments are those of the pipeline."""
        finder, name = self._finder(detector or "yunet", detector_weights), pipeline_gmdf.name_of(source)
        try:
            with (
                announcing(name, on_slow),
                open_input(source, num_frames, private_urls, max_seconds, open_file) as media,
            ):
                faces, about = finder(media)
        except INPUT_ERRORS as error:
            if on_error == "raise":
                raise
            faces, about = [], {"frames_read": 0, "error": str(error)}
        return FoundFaces(faces, {"source": name} | about)

    def preprocess(self, source: Any, **options: Any) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the faces of one input, one at a time."""
        faces, note = source if isinstance(source, FoundFaces) else self.find_faces(source, **options)
        for position, face in enumerate(faces):
            pixels = self.pixels_of(face["crop"])
            yield {"pixel_values": pixels, "face": face, "note": note, "is_last": position == len(faces) - 1}
        if not faces:  # the pipeline needs at least one entry
            pixels = self.pixels_of(Image.new("RGB", (64, 64)))
            yield {"pixel_values": pixels, "face": None, "note": note, "is_last": True}

    @cached_property
    def _side(self) -> int:
        return crop_side(self.image_processor)

    def _finder(self, detector: str, weights: str | None) -> FaceFinder:
        if (detector, weights) not in self._finders:
            self._finders[detector, weights] = load_finder(detector, weights, self._side)
        return self._finders[detector, weights]

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], return_heatmap: bool = False
    ) -> dict[str, Any]:
        pixels = model_inputs.pop("pixel_values").to(self.model.dtype)
        if not return_heatmap:
            return self._scores_of(self._call(pixels)) | model_inputs
        with torch.enable_grad():
            # The map needs a gradient at the last block's input, even if the weights are frozen.
            output = self._call(pixels.requires_grad_(), output_hidden_states=True)
            maps = evidence_map(output.hidden_states[-2], output.logits[:, [1 - self.fake, self.fake]])
        return self._scores_of(output) | {"heatmap": heatmap(maps, self._side)} | model_inputs

    def _call(self, pixels: torch.Tensor, **options: bool) -> Any:
        if self.exported is not None and not options:
            return self.exported(pixels)
        own = {"output_expert_weights": True} if self.is_gmdf else {}
        with scoring_in(self.model, self.scoring_dtype):
            return self.model(pixels, **own, **options)

    def _scores_of(self, output: Any) -> dict[str, torch.Tensor]:
        if self.gives_shares:
            return pipeline_gmdf.scores_of(output)
        scores = output.logits.detach().float().softmax(-1)[:, self.fake]
        return {"score": scores, "expert_weights": scores.new_zeros(len(scores), 0)}

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: list[dict[str, Any]],
        threshold: float | None = None,
        on_error: str = "raise",
        person_score: PersonScore | None = None,
    ) -> dict[str, Any]:
        """Combine the faces of one input into its result."""
        note, domains = model_outputs[0]["note"], self.expert_names
        given = threshold is not None
        threshold = self.default_threshold if threshold is None else threshold
        faces = [scored_face(output, threshold, domains) for output in model_outputs if output["face"] is not None]
        try:
            result = verdict(faces, note, threshold, domains)
        except BrokenModelError as error:
            if on_error == "raise":
                raise
            note = note | {"error": str(error)}
            result = verdict([], note, threshold, domains)
        point = None if given else self.operating_point
        own = "mean" if self.operating_point is None else cast(PersonScore, self.operating_point.person_score)
        result |= decide(result, point, person_score or own, threshold)
        return result | ({"error": note.get("error")} if on_error == "return" else {})

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and image processor; the saved folder contains the pipeline for face crops."""
        self.model.save_pretrained(save_directory, **kwargs)
        cast(Any, self.image_processor).save_pretrained(save_directory)


PIPELINE_REGISTRY.register_pipeline(
    pipeline_gmdf.TASK,
    pipeline_class=DeepfakeDetectionPipeline,
    pt_model=AutoModelForImageClassification,
    type="image",
)
