"""Turn a data set as its authors ship it into a domain that `meta_train.py` reads.

    python scripts/prepare.py --source celebdf --root /data/Celeb-DF-v2 --output domains/celebdf --processes 8

See docs/data.md for one command per data set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

try:
    import av  # noqa: F401
    import cv2  # noqa: F401
except ImportError as error:
    sys.exit(f"error: package {error.name} is missing: pip install 'gmdf-hf[prepare]'.")

from huggingface_hub.errors import HfHubHTTPError
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gmdf_hf.common.errors import UserError, WorkError, exit_on_error
from gmdf_hf.common.options import Argument, Options, parse_options
from gmdf_hf.preparation import prepare as stage
from gmdf_hf.preparation.contact_sheet import contact_sheet
from gmdf_hf.preparation.crops import CropSettings
from gmdf_hf.preparation.dataset_card import push_domain
from gmdf_hf.preparation.deepfakebench_export import export_deepfakebench
from gmdf_hf.preparation.sources import celebdf, deepfakebench, deepfakeface, dfdc, faceforensics, folder, wilddeepfake
from gmdf_hf.preparation.sources.record import Listing

SHOWN = 10
INTERRUPTED = 130


class PrepareOptions(Options):
    """What to prepare, and how."""

    source: Literal["faceforensics", "celebdf", "dfdc", "wilddeepfake", "deepfakeface", "deepfakebench", "folder"] = (
        Field(description="Importer.")
    )
    root: str = Field(description="Folder of the data set (deepfakeface: or a hub id).")
    output: str = Field(description="Folder of the prepared domain.")
    methods: tuple[str, ...] | None = Field(
        None, description=f"faceforensics: some of {', '.join(faceforensics.METHODS)}."
    )
    compression: str | None = Field(
        None, description=f"faceforensics, deepfakebench: {', '.join(faceforensics.COMPRESSIONS)} (default: c23)."
    )
    labels: Annotated[dict[str, Literal["real", "fake"]], Argument("NAME=CLASS")] = Field(
        {},
        description="folder, deepfakebench: real or fake for class names that do not say it, such as ai_art=fake.",
    )
    index: str | None = Field(None, description="deepfakebench: the JSON file.")
    frames: int = Field(32, ge=1, description="Frames of a video, spread evenly over all of it.")
    detector: Literal["yunet", "retinaface", "haar", "none"] | None = Field(
        None, description="Face detector (default: yunet; none for wilddeepfake)."
    )
    detector_weights: str | None = Field(
        None, description="Local weights of the face detector (default: the pinned ones of the hub)."
    )
    crop: Literal["box", "aligned"] = Field(
        "box", description="Crop: face box widened 1.3 times and square, or aligned."
    )
    size: int = Field(224, ge=1, description="Side of a crop in pixels.")
    image_format: Literal["jpeg", "png"] = Field("jpeg", description="Encoding of the crops.")
    processes: int = Field(os.cpu_count() or 1, ge=1, description="Worker processes.")
    engine: Literal["processes", "ray"] = Field(
        "processes", description="processes, or ray: the same work on Ray Data."
    )
    shard: Annotated[str, Argument("I/N")] = Field("1/1", description="Part i of n of the work, one per machine.")
    max_skipped: float = Field(0.05, ge=0, le=1, description="Largest share of files without a crop.")
    contact_sheet: Annotated[str | None, Argument("PNG")] = Field(
        None, description="Also write one picture of the domain."
    )
    deepfakebench: Annotated[str | None, Argument("FOLDER")] = Field(
        None, description="Also write the crops and index as DeepfakeBench reads them."
    )
    push_to_hub: Annotated[str | None, Argument("USER/NAME")] = Field(
        None, description="Also publish the domain, as a private repository."
    )


def list_records(options: PrepareOptions) -> Listing:
    """Run the importer of the data set."""
    names = ("methods", "compression", "index", "labels")
    given = {name: getattr(options, name) for name in names if getattr(options, name)}
    takes = {
        "faceforensics": {"methods", "compression"},
        "deepfakebench": {"index", "compression", "labels"},
        "folder": {"labels"},
    }
    surplus = sorted(given.keys() - takes.get(options.source, set()))
    if surplus:
        raise ValueError(f"--source {options.source} takes no --{surplus[0]}.")
    if options.source == "deepfakebench":
        if options.index is None:
            raise ValueError("--source deepfakebench needs --index with the path of the JSON file.")
        return deepfakebench.list_records(root=options.root, **given)
    if options.source == "faceforensics":
        return faceforensics.list_records(options.root, **given)
    modules = {
        "celebdf": celebdf,
        "dfdc": dfdc,
        "wilddeepfake": wilddeepfake,
        "deepfakeface": deepfakeface,
        "folder": folder,
    }
    return modules[options.source].list_records(options.root, **given)


def show(console: Console, listing: Listing) -> None:
    """Print the listing and its problems."""
    console.print(f"{len(listing.records)} videos or images, {len(listing.left_out)} files left out.")
    for note in listing.notes[:SHOWN]:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    if len(listing.notes) > SHOWN:
        console.print(f"and {len(listing.notes) - SHOWN} more notes, all in summary.json.", style="yellow")


def main(options: PrepareOptions) -> None:
    """Prepare a domain."""
    console = Console(stderr=True)
    number, _, of = options.shard.partition("/")
    if not (number.isdigit() and of.isdigit()):
        raise ValueError(f"--shard is {options.shard!r}, expected i/n, for example 2/8.")
    settings = CropSettings(options.frames, options.crop, options.size, options.image_format)
    listing = list_records(options)
    show(console, listing)
    columns = (
        TextColumn("units"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None, speed="")
        first: list[tuple[float, stage.Progress]] = []  # progress at the start of this run, for the speed

        def on_progress(state: stage.Progress) -> None:
            first.append((bar.get_time(), state)) if not first else None
            seconds = max(bar.get_time() - first[0][0], 1e-3)
            videos, faces = state.videos - first[0][1].videos, state.faces - first[0][1].faces
            speed = f"{videos / seconds:.1f} videos/s {faces / seconds:.0f} faces/s"
            bar.update(task, completed=state.units, total=state.total, speed=speed)

        summary = stage.prepare(
            listing,
            options.output,
            options.source,
            settings,
            options.detector or ("none" if options.source == "wilddeepfake" else "yunet"),
            options.detector_weights,
            options.processes,
            options.engine,
            (int(number), int(of)),
            options.max_skipped,
            on_progress,
        )
    for split, counts in summary["splits"].items():
        console.print(
            f"{split}: {counts['rows']} crops of {counts['real_videos']} real, {counts['fake_videos']} fake videos"
        )
    console.print(
        f"{summary['skipped']} skipped, {summary['lost_frames']} single frames lost, {summary['left_out']} left out "
        "(skipped.csv); near-duplicate videos: "
        + (", ".join(f"{count} {pair}" for pair, count in summary["near_duplicate_videos"].items()) or "one split only")
    )
    if summary["doubtful_videos"]:
        console.print(f"{summary['doubtful_videos']} fake videos show several people and have no mask: who is forged?")
    if summary["turned"]:
        console.print(f"{len(summary['turned'])} videos or images were turned, as their faces were not upright.")
    if options.contact_sheet:
        contact_sheet(options.output).save(options.contact_sheet)
    if options.deepfakebench:
        index = export_deepfakebench(options.output, options.deepfakebench, Path(options.output).resolve().name)
        console.print(f"For DeepfakeBench: {index}")
    if options.push_to_hub:
        console.print(f"Published: {push_domain(options.output, options.push_to_hub)}")


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Prepare a domain with the options of the command line."""
    options = parse_options(PrepareOptions, arguments, __doc__, program)
    try:
        with exit_on_error("error"):
            try:
                main(options)
            except ValueError as error:  # also errors of this package, which have a hint of their own
                raise error if hasattr(error, "hint") else UserError(str(error)) from error
            except HfHubHTTPError as error:
                raise WorkError(f"The hub could not be reached or refused: {' '.join(str(error).split())}") from error
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    run()
