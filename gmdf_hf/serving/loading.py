"""Loading a detector by folder or hub name, with one-sentence error messages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.hub import hub_or_cache
from gmdf_hf.common.options import Options, Precision, PrecisionOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from gmdf_hf.evaluation.classifier import Classifier
    from gmdf_hf.evaluation.operating_point import OperatingPoint
    from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline
    from gmdf_hf.serving.runtimes import ExportedDetector


def load_model(
    model: str, revision: str | None = None, trust_remote_code: bool = False, fake_label: str | None = None
) -> PreTrainedModel:
    """Load a detector: a GM-DF, or any other classifier with the classes real and fake.

    Args:
        model: Folder, or name on the hub, which may end in `@revision`.
        revision: Commit, branch or tag of a model on the hub.
        trust_remote_code: Whether to run code of the model's repository.
        fake_label: Name of the fake class, if its name does not tell.

    Raises:
        UserError: If the model does not exist, is no detector, or is damaged.
    """
    return _quiet(model, revision, trust_remote_code, fake_label, with_processor=False).model


class ModelOptions(Options):
    """Which detector a command uses; every command that loads one extends it."""

    model: str = Field(
        description="Folder of an image classifier with the classes real and fake, or its name on the hub "
        "(user/name@v1 for a revision): GM-DF, any classifier of transformers or timm, a PEFT adapter."
    )
    revision: str | None = Field(None, description="Commit, branch or tag of a model on the hub.")
    trust_remote_code: bool = Field(False, description="Let the model's own code run.")
    fake_label: str | None = Field(None, description="Name of the model's fake class, if it is not a word for fake.")
    operating_point: Path | None = Field(
        None, description="File that `gmdf calibrate` wrote (default: the one beside the model, if there is one)."
    )


class ScoringOptions(PrecisionOptions, ModelOptions):
    """Which detector a command scores with, and in which precision."""


Runtime = Literal["torch", "onnx", "onnx-int8", "openvino"]
EXPORTS = {"onnx": "model.onnx", "onnx-int8": "model.int8.onnx", "openvino": "model.onnx"}  # written by `export`
EXTRAS = {"onnx": "export", "onnx-int8": "export", "openvino": "openvino"}


class RuntimeOptions(ScoringOptions):
    """Which detector a command scores with, and which library runs it."""

    runtime: Runtime = Field(
        "torch",
        description="What runs the model; onnx and onnx-int8: ONNX Runtime, openvino: OpenVINO, all on a CPU, from the "
        "files that `gmdf export` wrote into the model's folder.",
    )


def _quiet(*arguments: Any, **options: Any) -> Classifier:
    from transformers.utils import logging

    from gmdf_hf.evaluation.classifier import load_classifier

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load_classifier(*arguments, **options)


def load_pipeline(
    model: str,
    detector: str = "yunet",
    detector_weights: str | None = None,
    batch_size: int = 16,
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    fake_label: str | None = None,
    operating_point: Path | None = None,
    use_operating_point: bool = True,
    dtype: Precision = "float32",
    runtime: Runtime = "torch",
) -> DeepfakeDetectionPipeline:
    """Load a detector as a pipeline and check its face detector.

    Args:
        model: See `load_model`.
        detector: Face detector; `none` treats every frame as a face crop.
        detector_weights: Local file with the detector's weights.
        batch_size: Faces per batch.
        device: Device of torch; None for the first accelerator.
        revision: See `load_model`.
        trust_remote_code: See `load_model`.
        fake_label: See `load_model`.
        operating_point: File with the operating point; None for the one beside the model, if there is one.
        use_operating_point: Whether to use an operating point at all.
        dtype: Precision of the model's layers.
        runtime: What runs the model.

    Raises:
        UserError: If the model or the device cannot be used.
        gmdf_hf.common.errors.DetectorError: If the face detector's weights are missing.
    """
    if runtime != "torch" and device not in (None, "cpu"):
        raise UserError(f"The runtime {runtime} scores on a CPU: expected no --device, found {device!r}.")
    if runtime in ("onnx", "onnx-int8") and dtype != "float32":
        raise UserError(f"The runtime {runtime} scores in its own precision: expected no --dtype, found {dtype!r}.")
    if runtime == "openvino" and dtype == "float16":
        raise UserError(f"The runtime openvino: expected --dtype float32, bfloat16 or auto, found {dtype!r}.")
    loaded = _quiet(model, revision, trust_remote_code, fake_label)
    from gmdf_hf.evaluation.classifier import is_gmdf
    from gmdf_hf.evaluation.precision import has_bfloat16_units, scoring_dtype
    from gmdf_hf.modeling.untrusted_gmdf import refusing_damage
    from gmdf_hf.serving.faces import crop_side, load_finder
    from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline

    if runtime == "openvino" and dtype == "bfloat16" and not has_bfloat16_units():  # it would take float32 unsaid
        raise UserError(f"This processor has no units for it: expected --dtype float32 or auto, found {dtype!r}.")
    try:
        with refusing_damage(model):
            side = crop_side(loaded.processor)
        if is_gmdf(loaded.model) and side != loaded.model.config.image_size:
            raise UserError(
                f"The model {model!r} takes images of {loaded.model.config.image_size} pixels, and its image processor "
                f"makes them {side}: expected the same.",
                "Download the checkpoint again, or load another one.",
            )
        load_finder(detector, detector_weights, side)  # fails early, before the first file
        detect = DeepfakeDetectionPipeline(
            model=loaded.model,
            image_processor=loaded.processor,
            detector=detector,
            detector_weights=detector_weights,
            batch_size=batch_size,
            device=device if runtime == "torch" else "cpu",
            fake_label=fake_label,
        )
        detect.scoring_dtype = scoring_dtype(dtype, detect.device, loaded.model)
        detect.exported = (
            None if runtime == "torch" else load_export(loaded.model, model, revision, runtime, detect.scoring_dtype)
        )
        detect.operating_point = (
            point_of(loaded.model, model, revision, operating_point) if use_operating_point else None
        )
        return detect
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        if hasattr(error, "hint"):
            raise
        raise UserError(" ".join(str(error).split())) from error


def load_export(
    model: PreTrainedModel, name: str, revision: str | None, runtime: Runtime, dtype: torch.dtype
) -> ExportedDetector:
    """Load the export beside a model, in its folder or on the hub.

    Raises:
        UserError: If there is none, it is of other weights, or a package is missing.
    """
    from transformers.utils import cached_file

    from gmdf_hf.evaluation.classifier import split_revision, weights_digest
    from gmdf_hf.serving.runtimes import OnnxDetector, OpenVinoDetector

    folder, revision = split_revision(name, revision)
    with hub_or_cache(folder):
        path = cached_file(
            folder, EXPORTS[runtime], revision=revision or "main", _raise_exceptions_for_missing_entries=False
        )
    make = f"Run gmdf export --model {folder} --output {folder}{' --int8' if runtime == 'onnx-int8' else ''} first."
    if path is None:
        raise UserError(f"The model {name!r} has no {EXPORTS[runtime]}, which the runtime {runtime} needs.", make)
    try:
        exported = OpenVinoDetector(Path(path), dtype) if runtime == "openvino" else OnnxDetector(Path(path))
    except ImportError as error:
        raise UserError(
            f"The runtime {runtime} needs {error.name}: pip install 'gmdf-hf[{EXTRAS[runtime]}]'."
        ) from error
    except Exception as error:  # ONNX Runtime's own errors have no common class
        raise UserError(f"{path} cannot be read by {runtime}: {' '.join(str(error).split())[:200]}", make) from error
    weights = weights_digest(model)
    if exported.weights != weights:
        raise UserError(f"{path} is an export of other weights: {exported.weights}, expected {weights}.", make)
    return exported


def point_of(
    model: PreTrainedModel, name: str, revision: str | None = None, path: Path | None = None
) -> OperatingPoint | None:
    """Operating point of a model: from a given file, else the one beside the model, else None.

    Raises:
        UserError: If the file cannot be used.
    """
    from gmdf_hf.evaluation.classifier import find_operating_point, weights_digest
    from gmdf_hf.evaluation.operating_point import read_operating_point

    if path is not None:
        return read_operating_point(path, weights_digest(model))
    return find_operating_point(model, name, revision)


def find_results(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """Return the content of `results.json` next to a model: in its folder, in its run, or on the hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    from gmdf_hf.evaluation.classifier import split_revision

    name, revision = split_revision(model, revision)
    found: Path | None
    if os.path.isdir(name):
        places = [Path(name, "results.json"), Path(name).resolve().parent / "results.json"]
        found = next((place for place in places if place.is_file()), None)
    else:
        try:
            with hub_or_cache(name):
                found = Path(hf_hub_download(name, "results.json", revision=revision))
        except (EntryNotFoundError, HfHubHTTPError):
            found = None
    return None if found is None else json.loads(found.read_text(encoding="utf-8"))
