"""Choose a detector's operating point: threshold at a false-positive rate, calibrated probability, uncertain band.

gmdf calibrate --model runs/paper/model --domains dfdc=domains/dfdc --max_fpr 0.01 --check
gmdf calibrate --model user/some-vit-detector --reals photos/ --max_fpr 0.001 --output operating_point.json

From --domains (real and fake) or from --reals, pictures and videos of real faces only, of the kind that will be judged.
The threshold keeps the rate with 95 % confidence; a rate that the data cannot show is refused with the number of real
faces that it needs. A video or picture is one sample. The result is operating_point.json beside the model, which
predict, demo, serve, info and evaluate use; the weights do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from gmdf_hf.common.errors import UserError, exit_on_error
from gmdf_hf.common.memory import keep_freed_memory
from gmdf_hf.common.options import Argument, parse_options
from gmdf_hf.serving.loading import ScoringOptions, load_pipeline
from gmdf_hf.training.config import DomainSource

if TYPE_CHECKING:
    import numpy as np

    from gmdf_hf.evaluation.operating_point import OperatingPoint
    from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline

    Samples = tuple[np.ndarray, np.ndarray]


class CalibrateOptions(ScoringOptions):
    """Which detector to calibrate, on what, and to which rate."""

    domains: Annotated[dict[str, DomainSource], Argument("NAME=PATH")] = Field(
        {}, description="Domains with real and fake faces."
    )
    split: Literal["train", "validation", "test"] = Field("validation", description="Split of the domains to use.")
    reals: Annotated[tuple[str, ...], Argument("FILE|FOLDER")] = Field(
        (), description="Pictures and videos of real faces."
    )
    max_fpr: float = Field(0.01, gt=0, lt=1, description="Largest share of real faces called fake.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence with which the rate is kept.")
    miss_rate: float | None = Field(
        None, ge=0, lt=1, description="Call real only below the scores of all but this share of the fakes."
    )
    method: Literal["temperature", "platt"] = Field("temperature", description="Calibration of the probability.")
    person_score: Literal["mean", "top", "segment"] = Field("mean", description="See gmdf predict --help.")
    output: Path | None = Field(
        None, description="File to write (default: operating_point.json in the model's folder)."
    )
    check: bool = Field(False, description="Measure the result on the domains' test splits, too.")
    detector: Literal["yunet", "retinaface", "haar", "none"] = Field(
        "yunet", description="Face detector for --reals; none: files are crops of one face."
    )
    detector_weights: str | None = Field(None, description="Local weights of the face detector.")
    frames: int = Field(32, ge=1, description="Frames of a video of --reals.")
    batch_size: int = Field(16, ge=1, description="Faces at a time.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps (default: the first accelerator).")

    @model_validator(mode="after")
    def _check_data(self) -> CalibrateOptions:
        if bool(self.domains) == bool(self.reals):
            raise ValueError("name either --domains, or --reals with pictures of real faces")
        if self.reals and (self.check or self.miss_rate is not None):
            raise ValueError("--check and --miss_rate need fakes: name --domains")
        return self


def main(options: CalibrateOptions) -> OperatingPoint:
    """Choose and save the operating point.

    Raises:
        UserError: If the model cannot be used, or the data cannot show the rate.
    """
    import numpy as np

    from gmdf_hf.common.files import printable
    from gmdf_hf.evaluation import operating_point as op
    from gmdf_hf.evaluation.classifier import split_revision, weights_digest
    from gmdf_hf.evaluation.training_data import describe_training

    folder = Path(split_revision(options.model, options.revision)[0])
    output = options.output or folder / op.FILE_NAME
    if options.output is None and not folder.is_dir():
        raise UserError(f"{options.model} is no folder to save the operating point in.", "Name a file with --output.")
    detect = load_pipeline(
        options.model,
        options.detector if options.reals else "none",
        options.detector_weights,
        options.batch_size,
        options.device,
        options.revision,
        options.trust_remote_code,
        options.fake_label,
        use_operating_point=False,
        dtype=options.dtype,
    )
    print(f"Trained on: {printable(describe_training(detect.model.config))}.")
    if options.reals:
        labels, scores = _score_files(detect, options)
        data = "files"
    else:
        labels, scores = _score_domains(detect, options, options.split)
        data = f"the {options.split} split of {', '.join(options.domains)}"
    reals, fakes = scores[labels == 0], scores[labels == 1]
    threshold = op.threshold_for(reals, options.max_fpr, options.confidence)
    alarms, found = int((reals >= threshold).sum()), int((fakes >= threshold).sum())
    slope, intercept = op.fit_calibration(labels, scores, options.method) if len(fakes) else (None, None)
    point = op.OperatingPoint(
        threshold=threshold,
        uncertain_from=op.band_start(reals, fakes, threshold, options.max_fpr, options.miss_rate),
        max_fpr=options.max_fpr,
        confidence=options.confidence,
        reals=len(reals),
        false_alarms=alarms,
        fpr_interval=op.clopper_pearson(alarms, len(reals)),
        fakes=len(fakes),
        found=found,
        tpr_interval=op.clopper_pearson(found, len(fakes)) if len(fakes) else None,
        slope=slope,
        intercept=intercept,
        person_score=options.person_score,
        data=data,
        weights=weights_digest(detect.model),
    )
    op.write_operating_point(output, point)
    print(f"{point.describe()}.")
    if slope is not None and intercept is not None:
        print(f"calibration ({options.method}): logit x {slope:.3f} + {intercept:.3f}")
        _print_reliability(options.split, labels, scores, point)
    if options.check:
        labels, scores = _score_domains(detect, options, "test")
        _print_reliability("test", labels, scores, point)
        flagged, number = int((scores[labels == 0] >= threshold).sum()), int(np.sum(labels == 0))
        low, high = op.clopper_pearson(flagged, number)
        print(
            f"test: asked for a false-positive rate of {options.max_fpr:.2%}, got {flagged} of {number} = "
            f"{flagged / number:.2%} (95 % interval {low:.2%} to {high:.2%})"
        )
    print(f"saved: {output}")
    return point


def _print_reliability(split: str, labels: np.ndarray, scores: np.ndarray, point: OperatingPoint) -> None:
    from gmdf_hf.evaluation.metrics import expected_calibration_error
    from gmdf_hf.evaluation.operating_point import calibrated

    assert point.slope is not None and point.intercept is not None
    after = calibrated(scores, point.slope, point.intercept)
    errors = [expected_calibration_error(labels, values) for values in (scores, after)]
    briers = [float(((values - labels) ** 2).mean()) for values in (scores, after)]
    print(
        f"{split}: expected calibration error {errors[0]:.2%} before, {errors[1]:.2%} after; Brier score "
        f"{briers[0]:.4f} before, {briers[1]:.4f} after ({len(labels)} samples)"
    )


def _score_domains(
    detect: DeepfakeDetectionPipeline, options: CalibrateOptions, split: Literal["train", "validation", "test"]
) -> Samples:
    """Labels and joined scores of the videos of all domains."""
    from gmdf_hf.data.dataset import load_domain
    from gmdf_hf.evaluation.aggregation import video_table
    from gmdf_hf.evaluation.scoring import score_domains

    domains = [load_domain(name, split, **source.model_dump()) for name, source in options.domains.items()]
    table, skipped = score_domains(
        detect.model,
        domains,
        processor=detect.image_processor,
        batch_size=options.batch_size,
        fake=detect.fake,
        dtype=detect.scoring_dtype,
    )
    if skipped:
        print(f"{len(skipped)} images of the split {split} could not be read.")
    videos = video_table(table, options.person_score)
    return videos["label"].to_numpy(), videos["score"].to_numpy(dtype=float)


def _score_files(detect: DeepfakeDetectionPipeline, options: CalibrateOptions) -> Samples:
    """Scores of the files of real faces; all labels are 0."""
    import numpy as np

    from gmdf_hf.serving.files import list_files

    scores, no_face, errors = [], 0, 0
    results: Any = detect(
        (file for file in dict.fromkeys(list_files(options.reals))),
        num_frames=options.frames,
        person_score=options.person_score,
        on_error="return",
    )
    for result in results:
        errors += result["error"] is not None
        no_face += result["error"] is None and result["score"] is None
        if result["score"] is not None:
            scores.append(result["score"])
    print(f"{len(scores)} files with a scored face, {no_face} without, {errors} unreadable.")
    if not scores:
        raise UserError(
            f"Expected at least one real face with a score, found {len(scores)}.",
            "Name pictures and videos of real faces with --reals.",
        )
    return np.zeros(len(scores), dtype=int), np.asarray(scores)


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Calibrate with the options of the command line."""
    from transformers.utils import logging as transformers_logging

    options = parse_options(CalibrateOptions, arguments, __doc__, program)
    keep_freed_memory()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with exit_on_error(program or "calibrate.py"):
        main(options)


if __name__ == "__main__":
    run()
