"""One line for a picture or a video: `pipeline("deepfake-detection", model=...)`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline

from .explain_gmdf import evidence_map, heatmap
from .faces_gmdf import FaceFinder, load_finder
from .inputs_gmdf import INPUT_ERRORS, name_of, read_input

TASK = "deepfake-detection"
# What a saved model's config says, so that the model alone is enough for the task.
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_gmdf.DeepfakeDetectionPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    }
}
BATCH_SIZE = 16


class DeepfakeDetectionPipeline(ChunkPipeline):
    """Finds the faces of pictures and videos, scores each, and says what was found.

    Inputs are paths, `http(s)` addresses, PIL images, RGB arrays, or a list, data set or generator of them; a
    generator is answered as it goes. Faces of all frames and files share batches.

    Every input gives a dict:

    * `label`: `fake` if `score` reaches `threshold`, `real` otherwise, None where there is no face;
    * `score`: the largest score of a person; a person's is the mean probability of `fake` over their frames (as in the
      evaluation), in [0, 1], or None where there is no face: no face is no verdict;
    * `threshold`: what the score was compared with;
    * `face_found`: whether there is a face;
    * `faces`: each face, a dict with `frame, person, box, crop_box, detection_score, score, label, expert_weights` and,
      if asked for, `heatmap`: an array over `crop_box`, above 0 where it speaks for fake, below for real, and `crop`,
      the picture it lies on;
    * `persons`: each person's `person, score, label, frames`;
    * `expert_weights`: each source domain's share in the verdict, by name: which experts spoke;
    * `frames_read`: 1 for a picture;
    * `error`: only with `on_error="return"`: None, or what was wrong with the input.

    Args (of the pipeline or of a call):
        detector: Face detector, `yunet` (the default), `retinaface` or `haar`; `none` where inputs are crops of one
            face already (square, 1.3 times the face box).
        detector_weights: Local file with the detector's weights, instead of those of the hub.
        num_frames: Frames to look at of a video, spread evenly over it; 32.
        threshold: Score from which a face is called fake; the model's own, chosen on validation videos.
        return_heatmap: Whether to add the map of each face.
        private_urls: Whether to fetch addresses inside of a network (loopback, private ranges); off.
        max_seconds: Longest time to spend on the frames of one video; as long as it takes.
        on_error: `raise`, or `return` the message and go on with the next input.
        batch_size: Faces at a time; 16.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("batch_size", BATCH_SIZE)
        self._finders: dict[tuple[str | None, str | None], FaceFinder] = {}
        super().__init__(*args, **kwargs)

    def _sanitize_parameters(
        self,
        detector: str | None = None,
        detector_weights: str | None = None,
        num_frames: int | None = None,
        threshold: float | None = None,
        return_heatmap: bool | None = None,
        private_urls: bool | None = None,
        max_seconds: float | None = None,
        on_error: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"`num_frames` must be at least 1, found {num_frames}.")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must lie in [0, 1], found {threshold}.")
        if on_error not in (None, "raise", "return"):
            raise ValueError(f"`on_error` must be 'raise' or 'return', found {on_error!r}.")
        reading = {
            "detector": detector,
            "detector_weights": detector_weights,
            "num_frames": num_frames,
            "private_urls": private_urls,
            "max_seconds": max_seconds,
            "on_error": on_error,
        }
        given = [reading, {"return_heatmap": return_heatmap}, {"threshold": threshold, "on_error": on_error}]
        return tuple({name: value for name, value in part.items() if value is not None} for part in given)

    def preprocess(
        self,
        source: object,
        detector: str | None = None,
        detector_weights: str | None = None,
        num_frames: int = 32,
        private_urls: bool = False,
        max_seconds: float | None = None,
        on_error: str = "raise",
    ) -> Iterator[dict[str, Any]]:
        """Yield the faces of one input, one at a time; something must be yielded even if there is none."""
        finder = self._finder(detector, detector_weights)
        frames = 0

        def counted() -> Iterator[tuple[int, np.ndarray]]:
            nonlocal frames
            for frame in read_input(source, num_frames, private_urls, max_seconds):
                frames += 1
                yield frame

        error, faces = None, []
        try:
            faces = finder(counted(), self.image_processor.crop_size["height"])
        except INPUT_ERRORS as problem:
            if on_error == "raise":
                raise
            error = str(problem)
        note = {"source": name_of(source), "frames_read": frames, "error": error}
        for position, face in enumerate(faces):
            pixels = self.image_processor(images=face.crop, return_tensors="pt")["pixel_values"]
            yield {"pixel_values": pixels, "face": face, "note": note, "is_last": position == len(faces) - 1}
        if not faces:
            side = self.model.config.vision_config.image_size
            yield {"pixel_values": torch.zeros(1, 3, side, side), "face": None, "note": note, "is_last": True}

    def _finder(self, detector: str | None, weights: str | None) -> FaceFinder:
        if (detector, weights) not in self._finders:
            self._finders[detector, weights] = load_finder(detector, weights)
        return self._finders[detector, weights]

    def _forward(self, model_inputs: dict[str, Any], return_heatmap: bool = False) -> dict[str, Any]:
        pixels = model_inputs.pop("pixel_values")
        with torch.set_grad_enabled(return_heatmap):
            # The map needs a gradient at the last block's input, whether or not the weights are frozen.
            pixels = pixels.to(self.model.dtype).requires_grad_(return_heatmap)
            output = self.model(pixels, output_expert_weights=True, output_hidden_states=return_heatmap)
            maps = evidence_map(output.hidden_states[-2], output.logits) if return_heatmap else None
        shares = torch.stack([block.float() for block in output.expert_weights]).mean(0)
        outputs = {"score": output.logits.detach().float().softmax(-1)[:, 1], "expert_weights": shares.detach()}
        if maps is not None:
            outputs["heatmap"] = heatmap(maps, self.image_processor.crop_size["height"])
        return outputs | model_inputs

    def postprocess(
        self, model_outputs: list[dict[str, Any]], threshold: float | None = None, on_error: str = "raise"
    ) -> dict[str, Any]:
        """Put the faces of one input together."""
        threshold = self.model.config.threshold if threshold is None else threshold
        domains = self.model.config.domains

        def label(score: float) -> str:
            return self.model.config.id2label[int(score >= threshold)]

        faces = []
        for output in model_outputs:
            if output["face"] is not None:
                found, score = output["face"], output["score"].item()
                face = {
                    "frame": found.frame,
                    "person": found.person,
                    "box": [float(value) for value in found.box],
                    "crop_box": list(found.crop_box),
                    "detection_score": found.detection_score,
                    "score": score,
                    "label": label(score),
                    "expert_weights": dict(zip(domains, output["expert_weights"][0].tolist(), strict=True)),
                }
                if "heatmap" in output:
                    face |= {"heatmap": output["heatmap"][0].numpy(), "crop": found.crop}
                faces.append(face)
        persons = []
        for person in sorted({face["person"] for face in faces}):
            scores = [face["score"] for face in faces if face["person"] == person]
            mean = sum(scores) / len(scores)
            persons.append({"person": person, "score": mean, "label": label(mean), "frames": len(scores)})
        worst = max(persons, key=lambda person: person["score"], default=None)
        shares = [face["expert_weights"] for face in faces if worst is not None and face["person"] == worst["person"]]
        note = model_outputs[0]["note"]
        result = {
            "source": note["source"],
            "label": None if worst is None else worst["label"],
            "score": None if worst is None else worst["score"],
            "threshold": threshold,
            "face_found": bool(faces),
            "frames_read": note["frames_read"],
            "persons": persons,
            "faces": faces,
            "expert_weights": {name: sum(share[name] for share in shares) / len(shares) for name in domains if shares},
        }
        return result | ({"error": note["error"]} if on_error == "return" else {})
