"""Score pictures and videos: are their faces forged?

gmdf predict photo.jpg --model runs/drawn/model
gmdf predict videos/ --model user/name --csv --output verdicts.csv     # the same command continues after a stop
gmdf predict crops/ --detector none --model user/name@v1 --json
gmdf predict files.parquet --model user/name --engine ray --processes 8 --json --output verdicts.jsonl
gmdf predict photo.jpg --model user/name --heatmaps maps/
gmdf predict photo.jpg --model user/some-vit-detector --fake_label AI

The score is the probability of fake of the most suspicious person. A file without a face has no score.

Exit status: 0 every file was read, 1 the model or the output cannot be used, 2 wrong command line, 3 some files could
not be read (they are named; the others have their results), 6 there are no files, 8 the face detector cannot be used,
130 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

from pydantic import Field, model_validator

from gmdf_hf.common.errors import EmptySourceError, exit_on_error
from gmdf_hf.common.options import Argument, parse_options
from gmdf_hf.serving.loading import RuntimeOptions

UNREADABLE = 3
VERDICTS = ("fake", "uncertain", "real", "no face", "error")
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}  # text is shown as it is


class PredictOptions(RuntimeOptions):
    """What to score, and where the results go."""

    sources: Annotated[tuple[str, ...], Argument("FILE|FOLDER|URL", positional=True)] = Field(
        description="Pictures and videos; folders are searched, linked ones too, each once. A .parquet file "
        "lists paths or addresses in its column `path`."
    )
    as_json: bool = Field(False, alias="json", description="Write a line of JSON a file, with every face.")
    as_csv: bool = Field(False, alias="csv", description="Write a row a file.")
    output: Path | None = Field(
        None,
        description="File to write. If it exists, the same command continues: files with a result are left out, files "
        "with an error are tried again.",
    )
    heatmaps: Path | None = Field(None, description="Folder for a map over each person's most suspicious face.")
    detector: Literal["yunet", "retinaface", "haar", "none"] = Field(
        "yunet", description="Face detector; none: files are crops of one face."
    )
    detector_weights: str | None = Field(
        None, description="Local weights of the face detector (default: the pinned ones of the hub)."
    )
    frames: int = Field(32, ge=1, description="Frames of a video to score.")
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Call scores of at least this fake (default: the operating point's, else the model's own).",
    )
    person_score: Literal["mean", "top", "segment"] | None = Field(
        None,
        description="A person's score from the frames': their mean, the mean of the highest quarter, or the highest "
        "mean of 4 frames in a row (default: the operating point's, else mean).",
    )
    segments: bool = Field(
        False, description="List the stretches of videos above the threshold, in seconds (JSON always has them)."
    )
    batch_size: int = Field(16, ge=1, description="Faces at a time.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps (default: the first accelerator).")
    engine: Literal["process", "ray"] = Field(
        "process", description="process: this one; ray: workers of Ray Data, here or on the cluster of RAY_ADDRESS."
    )
    processes: int = Field(os.cpu_count() or 1, ge=1, description="Workers of --engine ray.")

    @model_validator(mode="after")
    def _check_form(self) -> PredictOptions:
        if self.as_json and self.as_csv:
            raise ValueError("take --json or --csv, not both")
        if self.output is not None and not (self.as_json or self.as_csv):
            raise ValueError("--output needs --json or --csv")
        if self.heatmaps is not None and self.runtime != "torch":
            raise ValueError(f"--heatmaps needs gradients: --runtime torch, found {self.runtime}")
        return self

    @property
    def form(self) -> Literal["json", "csv", "text"]:
        """Output format."""
        return "json" if self.as_json else "csv" if self.as_csv else "text"


def main(options: PredictOptions) -> int:
    """Score every file.

    Returns:
        Exit status: 0, or `UNREADABLE`.

    Raises:
        UserError: If the model or the output cannot be used.
        EmptySourceError: If there are no files.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from gmdf_hf.common.files import printable
    from gmdf_hf.common.locks import locked_folder
    from gmdf_hf.evaluation.training_data import describe_training
    from gmdf_hf.serving.ahead import share_processor
    from gmdf_hf.serving.decisions import segment_lines
    from gmdf_hf.serving.files import list_files
    from gmdf_hf.serving.loading import load_pipeline
    from gmdf_hf.serving.ray_workers import score_with_ray
    from gmdf_hf.serving.results import ResultFile, settings_of, verdict

    listed = list(dict.fromkeys(list_files(options.sources)))
    if not listed:
        raise EmptySourceError(
            f"No files found in {', '.join(options.sources)}.", "Name pictures, videos, or folders that hold some."
        )
    console = Console(stderr=True)
    with ExitStack() as stack:
        if options.output is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_folder(options.output.parent, f"-{options.output.name}"))
        loading: dict[str, Any] = {
            "model": options.model,
            "detector": options.detector,
            "detector_weights": options.detector_weights,
            "batch_size": options.batch_size,
            "device": options.device,
            "revision": options.revision,
            "trust_remote_code": options.trust_remote_code,
            "fake_label": options.fake_label,
            "operating_point": options.operating_point,
            "dtype": options.dtype,
            "runtime": options.runtime,
        }
        detect = load_pipeline(**loading)
        if detect.device.type == "cpu":
            share_processor()
        console.print(f"Trained on: {printable(describe_training(detect.model.config))}.", **PLAIN)
        point = detect.operating_point if options.threshold is None else None
        if point is not None:
            console.print(f"Operating point: {printable(point.describe())}.", **PLAIN)
        threshold = detect.default_threshold if options.threshold is None else options.threshold
        settings = settings_of(detect, options.runtime, threshold, options.detector, options.frames)
        settings |= {"uncertain_from": None if point is None else point.uncertain_from}
        settings |= {"person_score": options.person_score or (point.person_score if point else "mean")}
        results = ResultFile(options.output, options.form, settings, options.model, options.revision, listed)
        files = [file for file in listed if not results.has(file)]
        counts: Counter[str] = Counter()
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        stack.enter_context(results)
        bar = stack.enter_context(Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True))
        task = bar.add_task("", total=len(listed), completed=len(listed) - len(files))
        call: dict[str, Any] = {
            "num_frames": options.frames,
            "threshold": options.threshold,
            "person_score": options.person_score,
            "return_heatmap": options.heatmaps is not None,
        }
        if options.engine == "ray":
            found = score_with_ray(files, loading, call, options.processes)
        else:
            found = detect(
                (file for file in files),  # the results of a generator come one by one, those of a list all at the end
                on_error="return",
                on_slow=lambda file: console.print(f"Still reading {printable(file)} ...", **PLAIN),
                **call,
            )
        for result in found:
            counts[verdict(result)] += 1
            if options.heatmaps is not None:
                save_heatmaps(options.heatmaps, result)
            results.write(result)
            if options.segments and not options.as_json:
                for line in segment_lines(result, printable):
                    print(line, file=sys.stderr if options.as_csv else sys.stdout)
            bar.update(task, advance=1, description=", ".join(f"{n} {name}" for name, n in counts.items()))
    words = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])
    earlier = f"; {len(listed) - len(files)} more were done before" if len(files) < len(listed) else ""
    console.print(f"{sum(counts.values())} files: {words or 'nothing to do'}{earlier}.", **PLAIN)
    return UNREADABLE if counts["error"] else 0


def save_heatmaps(folder: Path, result: dict[str, Any]) -> None:
    """Save the heat map over each person's highest-scored face; the file name has source, person and frame."""
    import hashlib

    from gmdf_hf.serving.overlays import overlay

    folder.mkdir(parents=True, exist_ok=True)
    source = result["source"]
    digest = hashlib.sha256(source.encode(errors="surrogateescape")).hexdigest()
    name = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', Path(source).name)[:80]}-{digest[:8]}"
    for person in result["persons"]:
        faces = [face for face in result["faces"] if face["person"] == person["person"]]
        face = max(faces, key=lambda face: face["score"])
        picture = overlay(face["crop"], face["heatmap"])
        picture.save(folder / f"{name}-person{face['person']}-frame{face['frame']}.png")


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Score the files of the command line."""
    import warnings

    options = parse_options(PredictOptions, arguments, __doc__, program)
    from gmdf_hf.common.memory import keep_freed_memory, objects_to_keep, share_heaps

    with objects_to_keep():  # after the options: `--help` answers at once
        import gmdf_hf.serving.pipeline
        import gmdf_hf.serving.results  # noqa: F401
    share_heaps(1)  # the threads that read ahead would each have a heap, a tenth more memory
    keep_freed_memory()
    warnings.filterwarnings("ignore", module="PIL")  # of damaged files, which are reported separately
    with exit_on_error(program or "predict.py"):
        status = main(options)
    sys.exit(status)


if __name__ == "__main__":
    run()
