"""Turn a data set as its authors ship it into a domain that `meta_train.py` reads.

    python scripts/prepare.py --source celebdf --root /data/Celeb-DF-v2 --output domains/celebdf --processes 8

See docs/data.md for one command per data set.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import av  # noqa: F401
    import cv2  # noqa: F401
except ImportError as error:
    sys.exit(f"error: package {error.name} is missing: pip install 'gmdf-hf[prepare]'.")

from huggingface_hub.errors import HfHubHTTPError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gmdf_hf.common.errors import exit_on_error
from gmdf_hf.common.labels import CLASS_NAMES
from gmdf_hf.preparation import prepare as stage
from gmdf_hf.preparation.contact_sheet import contact_sheet
from gmdf_hf.preparation.crops import CROPS, FORMATS, CropSettings
from gmdf_hf.preparation.dataset_card import push_domain
from gmdf_hf.preparation.deepfakebench_export import export_deepfakebench
from gmdf_hf.preparation.detectors import DETECTORS
from gmdf_hf.preparation.sources import celebdf, deepfakebench, deepfakeface, dfdc, faceforensics, folder, wilddeepfake
from gmdf_hf.preparation.sources.record import Listing
from gmdf_hf.preparation.workers import ENGINES

SOURCES = ("faceforensics", "celebdf", "dfdc", "wilddeepfake", "deepfakeface", "deepfakebench", "folder")
SHOWN = 10


def parser() -> argparse.ArgumentParser:
    """Return the command line of this script."""
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--source", required=True, choices=SOURCES, help="importer")
    cli.add_argument("--root", required=True, help="folder of the data set (deepfakeface: or a hub id)")
    cli.add_argument("--output", required=True, help="folder of the prepared domain")
    cli.add_argument("--methods", nargs="+", help=f"faceforensics: some of {', '.join(faceforensics.METHODS)}")
    cli.add_argument(
        "--compression", help=f"faceforensics, deepfakebench: {', '.join(faceforensics.COMPRESSIONS)} (c23)"
    )
    cli.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME=CLASS",
        help="folder, deepfakebench: real or fake for class names that do not say it, such as ai_art=fake",
    )
    cli.add_argument("--index", help="deepfakebench: the JSON file")
    cli.add_argument("--frames", type=int, default=32, help="frames per video, spread evenly over all of it (32)")
    cli.add_argument("--detector", choices=DETECTORS, help="face detector (yunet; none for wilddeepfake)")
    cli.add_argument("--detector_weights", help="local weights; without it the pinned ones of the hub are taken")
    cli.add_argument("--crop", choices=CROPS, default="box", help="box widened 1.3 and square, or aligned (box)")
    cli.add_argument("--size", type=int, default=224, help="side of a crop in pixels (224)")
    cli.add_argument("--image_format", choices=FORMATS, default="jpeg", help="encoding of the crops (jpeg)")
    cli.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="worker processes (all cores)")
    cli.add_argument(
        "--engine", choices=ENGINES, default="processes", help="ray: the same work on Ray Data (processes)"
    )
    cli.add_argument("--shard", default="1/1", help="i/n: the i-th of n parts of the work, one per machine (1/1)")
    cli.add_argument("--max_skipped", type=float, default=0.05, help="largest share of files without a crop (0.05)")
    cli.add_argument("--contact_sheet", metavar="PNG", help="also write one picture of the domain")
    cli.add_argument(
        "--deepfakebench", metavar="DIR", help="also write the crops and index as DeepfakeBench reads them"
    )
    cli.add_argument("--push_to_hub", metavar="USER/NAME", help="also publish the domain, as a private repository")
    return cli


def list_records(args: argparse.Namespace) -> Listing:
    """Run the importer that the command line names."""
    names = ("methods", "compression", "index", "labels")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    takes = {
        "faceforensics": {"methods", "compression"},
        "deepfakebench": {"index", "compression", "labels"},
        "folder": {"labels"},
    }
    surplus = sorted(given.keys() - takes.get(args.source, set()))
    if surplus:
        raise ValueError(f"--source {args.source} takes no --{surplus[0]}.")
    if "labels" in given:
        given["labels"] = parse_labels(given["labels"])
    if args.source == "deepfakebench":
        if args.index is None:
            raise ValueError("--source deepfakebench needs --index with the path of the JSON file.")
        return deepfakebench.list_records(root=args.root, **given)
    if args.source == "faceforensics":
        return faceforensics.list_records(args.root, **given)
    modules = {
        "celebdf": celebdf,
        "dfdc": dfdc,
        "wilddeepfake": wilddeepfake,
        "deepfakeface": deepfakeface,
        "folder": folder,
    }
    return modules[args.source].list_records(args.root, **given)


def parse_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Classes that the user states, from `name=real` and `name=fake`."""
    stated = {}
    for pair in pairs:
        name, _, label = pair.rpartition("=")
        if not name or label not in CLASS_NAMES:
            raise ValueError(f"--labels takes name=real or name=fake, found {pair!r}.")
        stated[name] = label
    return stated


def show(console: Console, listing: Listing) -> None:
    """Print what was found and what is wrong with it."""
    console.print(f"{len(listing.records)} videos or images, {len(listing.left_out)} files left out.")
    for note in listing.notes[:SHOWN]:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    if len(listing.notes) > SHOWN:
        console.print(f"and {len(listing.notes) - SHOWN} more notes, all in summary.json.", style="yellow")


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare a domain."""
    args = parser().parse_args(argv)
    console = Console(stderr=True)
    number, _, of = args.shard.partition("/")
    if not (number.isdigit() and of.isdigit()):
        raise ValueError(f"--shard is {args.shard!r}, expected i/n, for example 2/8.")
    settings = CropSettings(args.frames, args.crop, args.size, args.image_format)
    listing = list_records(args)
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
        first: list[tuple[float, stage.Progress]] = []  # what an earlier run had done is no speed of this one

        def on_progress(state: stage.Progress) -> None:
            first.append((bar.get_time(), state)) if not first else None
            seconds = max(bar.get_time() - first[0][0], 1e-3)
            videos, faces = state.videos - first[0][1].videos, state.faces - first[0][1].faces
            speed = f"{videos / seconds:.1f} videos/s {faces / seconds:.0f} faces/s"
            bar.update(task, completed=state.units, total=state.total, speed=speed)

        summary = stage.prepare(
            listing,
            args.output,
            args.source,
            settings,
            args.detector or ("none" if args.source == "wilddeepfake" else "yunet"),
            args.detector_weights,
            args.processes,
            args.engine,
            (int(number), int(of)),
            args.max_skipped,
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
    if args.contact_sheet:
        contact_sheet(args.output).save(args.contact_sheet)
    if args.deepfakebench:
        index = export_deepfakebench(args.output, args.deepfakebench, Path(args.output).resolve().name)
        console.print(f"For DeepfakeBench: {index}")
    if args.push_to_hub:
        console.print(f"Published: {push_domain(args.output, args.push_to_hub)}")


if __name__ == "__main__":
    try:
        with exit_on_error("error"):
            main()
    except (ValueError, OSError, HfHubHTTPError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
