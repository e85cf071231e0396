"""Loading a detector by folder or hub name, with one-sentence error messages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.files import printable
from gmdf_hf.common.labels import class_of

if TYPE_CHECKING:
    from gmdf_hf.modeling.auto_gmdf import GMDFModel
    from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline


def split_revision(model: str, revision: str | None = None) -> tuple[str, str | None]:
    """Split a model name into folder or hub name, and revision, as in `user/name@v1`.

    Raises:
        UserError: If name and argument both give a revision.
    """
    name, at, found = model.rpartition("@")
    if not at or os.path.exists(model):
        return model, revision
    if revision is not None and revision != found:
        raise UserError(f"The model {model!r} names the revision {found!r}, and --revision is {revision!r}.")
    return name, found


def load_model(model: str, revision: str | None = None) -> GMDFModel:
    """Load a detector.

    Args:
        model: Folder, or name on the hub, which may end in `@revision`.
        revision: Commit, branch or tag of a model on the hub.

    Raises:
        UserError: If the model does not exist, is of another type, or is damaged.
    """
    name, revision = split_revision(model, revision)
    try:
        from transformers.utils import logging

        from gmdf_hf.modeling.auto_gmdf import GMDFModel

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        loaded = GMDFModel.from_pretrained(name, revision=revision or "main").eval()
        names = [str(loaded.config.id2label[number]) for number in (0, 1)]
        if [class_of(name) for name in names] != [0, 1]:
            raise ValueError(f"its classes are {printable(', '.join(names))}, expected names of real and fake")
        return loaded
    except (ImportError, OSError, ValueError) as error:
        raise UserError(f"The model {model!r} cannot be used: {' '.join(str(error).split())}") from error


def load_pipeline(
    model: str,
    detector: str = "yunet",
    detector_weights: str | None = None,
    batch_size: int = 16,
    device: str | None = None,
    revision: str | None = None,
) -> DeepfakeDetectionPipeline:
    """Load a detector as a pipeline and check its face detector.

    Raises:
        UserError: If the model or the device cannot be used.
        gmdf_hf.common.errors.DetectorError: If the face detector's weights are missing.
    """
    loaded = load_model(model, revision)
    name, revision = split_revision(model, revision)
    from gmdf_hf.modeling.auto_gmdf import GMDFImageProcessor
    from gmdf_hf.modeling.untrusted_gmdf import check_processor
    from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline, load_finder

    try:
        processor = GMDFImageProcessor.from_pretrained(name, revision=revision or "main")
        check_processor(processor, model)
        load_finder(detector, detector_weights, processor.crop_size["height"])  # fails early, before the first file
        return DeepfakeDetectionPipeline(
            model=loaded,
            image_processor=processor,
            detector=detector,
            detector_weights=detector_weights,
            batch_size=batch_size,
            device=device,
        )
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        if hasattr(error, "hint"):
            raise
        raise UserError(" ".join(str(error).split())) from error


def find_results(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """Return the content of `results.json` next to a model: in its folder, in its run, or on the hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    name, revision = split_revision(model, revision)
    found: Path | None
    if os.path.isdir(name):
        places = [Path(name, "results.json"), Path(name).resolve().parent / "results.json"]
        found = next((place for place in places if place.is_file()), None)
    else:
        try:
            found = Path(hf_hub_download(name, "results.json", revision=revision))
        except (EntryNotFoundError, HfHubHTTPError):
            found = None
    return None if found is None else json.loads(found.read_text(encoding="utf-8"))
