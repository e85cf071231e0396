"""The command `gmdf`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gmdf_hf.common.errors import UserError

COLUMNS = ("source", "label", "score", "threshold", "face_found", "persons", "faces", "frames_read", "error")
UNUSABLE, UNREADABLE, INTERRUPTED = 1, 3, 130  # 2 is a wrong command line

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__
)
Model = Annotated[str, typer.Option("--model", help="Folder of a detector, or its name on the hub.")]
Weights = Annotated[
    str | None, typer.Option("--detector_weights", help="Local weights of the face detector; otherwise the hub's.")
]


@app.command()
def predict(
    sources: Annotated[list[str], typer.Argument(metavar="FILE|FOLDER|URL...", help="Pictures and videos.")],
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON a file, with every face.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A row a file.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write there; what it holds already is not looked at again.")
    ] = None,
    heatmaps: Annotated[
        Path | None, typer.Option("--heatmaps", help="Folder for a map over each person's most suspicious face.")
    ] = None,
    detector: Annotated[
        str, typer.Option("--detector", help="yunet, retinaface, haar; none: files are face crops.")
    ] = "yunet",
    detector_weights: Weights = None,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames to look at of a video.")] = 32,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, max=1, help="Call fake from this score; the model's own.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Faces at a time.")] = 16,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps.")] = None,
) -> None:
    """Say of pictures and videos whether their faces are forged.

    \b
    gmdf predict photo.jpg --model runs/drawn/model
    gmdf predict videos/ --model user/name --csv --output verdicts.csv     # again, it goes on where it stopped
    gmdf predict crops/ --detector none --model user/name --json
    gmdf predict photo.jpg --model user/name --heatmaps maps/

    The score is the probability of fake of the most suspicious person. A file without a face has no score.

    \b
    Exit status: 0 every file of this run was read, 1 the model or face detector cannot be used, 2 wrong command line,
    3 some files could not be read (they are named, the others have their results), 130 interrupted.
    """
    if as_json and as_csv:
        raise typer.BadParameter("take --json or --csv, not both")
    if output is not None and not (as_json or as_csv):
        raise typer.BadParameter("--output needs --json or --csv")
    done = read_done(output, as_json) if output is not None and output.exists() else set()
    files = [file for file in dict.fromkeys(list_files(sources)) if file not in done]
    detect = load_pipeline(model, detector, detector_weights, batch_size, device)
    options = {} if threshold is None else {"threshold": threshold}
    results = detect(
        (file for file in files),
        num_frames=frames,
        on_error="return",
        return_heatmap=heatmaps is not None,
        **options,
    )
    counts: Counter[str] = Counter()
    console = Console(stderr=True)
    with open(output, "a", newline="") if output is not None else nullcontext(sys.stdout) as file:
        if as_csv and (output is None or not output.stat().st_size):
            csv.writer(file).writerow(COLUMNS)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
            task = bar.add_task("", total=len(files) + len(done), completed=len(done))
            for result in results:
                counts[verdict(result)] += 1
                if heatmaps is not None:
                    save_heatmaps(heatmaps, result)
                write_result(file, result, as_json, as_csv)
                bar.update(task, advance=1, description=", ".join(f"{n} {name}" for name, n in counts.items()))
    said = ", ".join(f"{counts[name]} {name}" for name in ("fake", "real", "no face", "error") if counts[name])
    earlier = f"; {len(done)} more were done before" if done else ""
    console.print(f"{sum(counts.values())} files: {said or 'nothing to do'}{earlier}.", highlight=False)
    if counts["error"]:
        raise typer.Exit(UNREADABLE)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Folder of a detector, or its name on the hub.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what a detector was trained on, its size, its threshold and its results.

    \b
    gmdf info runs/drawn/model
    gmdf info user/name --json
    """
    from gmdf_hf.evaluation.report import print_results

    detector = load_model(model)
    config, results = detector.config, find_results(model)
    vision = config.vision_config
    facts = {
        "model": model,
        "domains": config.domains,
        "threshold": config.threshold,
        "backbone": vision.model_type,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layers": getattr(vision, "num_hidden_layers", None),
        "hidden_size": getattr(vision, "hidden_size", None),
        "dil": config.dil,
        "aggregation": config.aggregation,
        "expert_effect": config.expert_effect,
        "slim": config.slim,
        "parameters": sum(p.numel() for p in detector.parameters()),
        "expert_parameters": sum(p.numel() for p in detector.expert_parameters().values()),
    }
    if as_json:
        print(json.dumps(facts | {"results": results}, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else f"{value:,}" if type(value) is int else value
        print(f"{name:<18} {shown}")
    if results is None:
        print("results            none beside the model")
    else:
        print_results(results)


@app.command()
def demo(
    model: Model,
    detector_weights: Weights = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 7860,
) -> None:
    """Open a page to drop a picture or a video on.

    \b
    gmdf demo --model runs/drawn/model
    """
    try:
        from gmdf_hf.serving.demo import launch
    except ImportError as error:
        raise UserError(f"The demo needs the package {error.name}: pip install 'gmdf-hf[demo]'.") from error
    launch(load_pipeline(model, "yunet", detector_weights, 16, None), host, port)


def list_files(sources: Iterable[str]) -> Iterator[str]:
    """Yield addresses and files as they are, and the files of folders in order, hidden ones left out."""
    for source in sources:
        if not os.path.isdir(source):
            yield source
            continue
        for folder, folders, names in os.walk(source):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (os.path.join(folder, name) for name in sorted(names) if not name.startswith("."))


def load_model(model: str) -> Any:
    """Load a detector, with one sentence for what may be wrong.

    Raises:
        UserError: If there is no such model, or it is another kind of model.
    """
    from transformers.utils import logging

    from gmdf_hf.modeling import GMDFModel

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return GMDFModel.from_pretrained(model).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"The model {model!r} cannot be used: {' '.join(str(error).split())}") from error


def load_pipeline(model: str, detector: str, weights: str | None, batch_size: int, device: str | None) -> Any:
    """Load a detector as a pipeline whose face detector is known to work.

    Raises:
        UserError: If the model or the face detector cannot be used.
    """
    from gmdf_hf.modeling import GMDFImageProcessor
    from gmdf_hf.serving.pipeline import DeepfakeDetectionPipeline, load_finder

    loaded = load_model(model)
    try:
        load_finder(detector, weights, 224)  # now, and not at the first of a thousand files
        return DeepfakeDetectionPipeline(
            model=loaded,
            image_processor=GMDFImageProcessor.from_pretrained(model),
            detector=detector,
            detector_weights=weights,
            batch_size=batch_size,
            device=device,
        )
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


def find_results(model: str) -> dict[str, Any] | None:
    """Return what `results.json` beside a model holds: in its folder, in its run, or on the hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    if os.path.isdir(model):
        places = [Path(model, "results.json"), Path(model).resolve().parent / "results.json"]
        found = next((place for place in places if place.is_file()), None)
    else:
        try:
            found = Path(hf_hub_download(model, "results.json"))
        except (EntryNotFoundError, HfHubHTTPError):
            found = None
    return None if found is None else json.loads(found.read_text())


def read_done(output: Path, as_json: bool) -> set[str]:
    """Return the sources that an output file has results of; a last line that was cut off is taken away.

    Raises:
        UserError: If the file holds something else.
    """
    data = output.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(output, len(whole))
    try:
        text = whole.decode()
        if as_json:
            return {json.loads(line)["source"] for line in text.splitlines()}
        return {row["source"] for row in csv.DictReader(io.StringIO(text, newline=""))}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{output} is there and holds no results of `gmdf predict` in this form.") from error


def verdict(result: dict[str, Any]) -> str:
    """`fake`, `real`, `no face` or `error`."""
    return "error" if result["error"] is not None else result["label"] or "no face"


def write_result(file: IO[str], result: dict[str, Any], as_json: bool, as_csv: bool) -> None:
    """Write one result as a line, at once."""
    if as_json:
        pictures = ("heatmap", "crop")
        faces = [{name: value for name, value in face.items() if name not in pictures} for face in result["faces"]]
        file.write(json.dumps(result | {"faces": faces}) + "\n")
    elif as_csv:
        counted = result | {"persons": len(result["persons"]), "faces": len(result["faces"])}
        csv.writer(file).writerow([counted[name] for name in COLUMNS])
    else:
        score = "" if result["score"] is None else f"{result['score']:.3f}"
        file.write(f"{verdict(result):<8} {score:<6} {result['error'] or result['source']}\n")
    file.flush()


def save_heatmaps(folder: Path, result: dict[str, Any]) -> None:
    """Save the map over each person's most suspicious face; the file's name tells source, person and frame."""
    from gmdf_hf.serving.overlays import overlay

    folder.mkdir(parents=True, exist_ok=True)
    source = result["source"]
    name = (
        f"{re.sub(r'[^A-Za-z0-9.-]+', '_', Path(source).name)[:80]}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    )
    for person in result["persons"]:
        faces = [face for face in result["faces"] if face["person"] == person["person"]]
        face = max(faces, key=lambda face: face["score"])
        picture = overlay(face["crop"], face["heatmap"])
        picture.save(folder / f"{name}-person{face['person']}-frame{face['frame']}.png")


def main() -> None:
    """Run the command; a user's mistake is one sentence."""
    warnings.filterwarnings("ignore", module="PIL")  # of damaged files, which have their own line
    try:
        app()
    except UserError as error:
        print(f"gmdf: {error}", file=sys.stderr)
        sys.exit(UNUSABLE)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNUSABLE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
