"""Run a table or figure of the paper and print ours beside the paper's: Markdown, CSV and PNG.

python scripts/protocol.py table3 --scale paper --seeds 0 1 2     # GMDF_DOMAINS: folder of the prepared domains
python scripts/protocol.py table8 fig7 --scale mini               # drawn domains, one step a run: does it all work?
python scripts/protocol.py real_leave_one_out --scale real --seeds 0 1 2 3 4

A finished run is not repeated, even for another table, and a killed run is resumed.
"""

from __future__ import annotations

import csv
import gc
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from PIL import ImageOps
from pydantic import Field
from rich.console import Console
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

# `python scripts/protocol.py` also imports the other scripts of this folder under their package names.
sys.path.insert(0, str(Path(__file__).parent.parent))

from gmdf_hf.common.errors import exit_on_error
from gmdf_hf.common.memory import keep_freed_memory
from gmdf_hf.common.options import Argument, Options, parse_options
from gmdf_hf.data.dataset import load_domain
from gmdf_hf.evaluation import plots
from gmdf_hf.evaluation.attention import attention_maps
from gmdf_hf.evaluation.comparison import compare
from gmdf_hf.evaluation.score_table import DomainScores, read_scores, split_domains
from gmdf_hf.evaluation.scoring import read_picture
from gmdf_hf.evaluation.tables import markdown, percent, percent_interval, rich_table
from gmdf_hf.scripts import evaluate, meta_train, pretrain_faces
from gmdf_hf.training.config import TrainConfig
from gmdf_hf.training.protocol import Figure, Protocol, Run, Scale, distortions_of, plan, read_yaml, value_of
from gmdf_hf.training.protocol_table import Cell, budgets, columns_of, paper_results, table_of

RECIPES = Path(__file__).parent / "recipes"
PICTURES = 1  # per class and test domain, in attention maps


def main(name: str, scale_name: str, seeds: Sequence[int], folder: Path) -> list[list[str]]:
    """Run the unfinished runs of a protocol and write its table and picture.

    Args:
        name: Name of a file in recipes/protocols.
        scale_name: Name of a file in recipes/scales.
        seeds: Seeds of the runs.
        folder: Folder of the results; its `runs` has the run folders.

    Returns:
        The table, header first.

    Raises:
        UserError: If the protocol cannot be run.
        DomainError: If a domain cannot be used.
    """
    protocol = read_yaml(RECIPES / "protocols" / f"{name}.yaml", Protocol)
    scale = read_yaml(RECIPES / "scales" / f"{scale_name}.yaml", Scale)
    protocol = protocol.model_copy(update={"settings": protocol.settings[: scale.max_settings]})
    runs = plan(protocol, scale, RECIPES / "scales" / scale.recipe, seeds, folder / "runs")
    for number, run in enumerate(runs, start=1):
        if run.config is not None and not run.done:
            own = run.row.backbone is not None
            if scale.pretraining_steps and not own and not (Path(run.config.backbone) / "config.json").exists():
                of_recipe = yaml.safe_load((RECIPES / "scales" / scale.recipe).read_text(encoding="utf-8"))["backbone"]
                start = run.config.model_copy(update={"backbone": of_recipe, "seed": 0})
                pretrain_faces.pretrain(start, Path(run.config.backbone), scale.pretraining_steps)
            print(
                f"{name}: run {number} of {len(runs)}, {run.row.label}, {run.setting.label}, seed {run.seed}",
                flush=True,
            )
            shutil.rmtree(run.config.output_dir / "distorted", ignore_errors=True)  # scores of outdated weights
            meta_train.main(run.config.model_copy(update={"resume": True}))  # continues a killed run
            gc.collect()
    cells = cells_of(protocol, scale, runs)
    table = table_of(protocol, cells)
    if PartialState().is_main_process:
        command = f"python scripts/protocol.py {name} --scale {scale_name} --seeds {' '.join(map(str, seeds))}"
        remarks = [*comparisons(protocol, runs, scale.replicates), scale.note, f"`{command}`"]
        write(protocol, runs, cells, table, folder / name, remarks)
    return table


def cells_of(protocol: Protocol, scale: Scale, runs: Sequence[Run]) -> dict[tuple[str, str], Cell]:
    """Cells of the table by row and column."""
    paper = paper_results(protocol.paper)
    cells = {}
    for row in protocol.rows:
        printed = dict(zip(paper["columns"], paper["rows"].get(row.paper, []), strict=False))
        for setting in protocol.settings:
            done = [run for run in runs if (run.row, run.setting) == (row, setting) and run.config is not None]
            for figure in protocol.figures:
                column = f"{setting.label}: {figure.label}"
                values = tuple(measured(figure, run, scale) for run in done)
                cells[row.label, column] = Cell(row.label, column, values, printed.get(column))
    return cells


def measured(figure: Figure, run: Run, scale: Scale) -> float:
    """Value of a figure for a run; a figure under distortions scores the distorted domains."""
    distortions = distortions_of(figure)
    if not distortions:
        return value_of(figure, run.setting, run.results()["domains"])
    names = (figure.domain,) if figure.domain else run.setting.test
    evaluations = [distorted(run.planned, distortion, names, scale.replicates) for distortion in distortions]
    return float(np.mean([value_of(figure, run.setting, domains) for domains in evaluations]))


def distorted(config: TrainConfig, distortion: str, names: Sequence[str], replicates: int) -> dict[str, Any]:
    """Results of a run's model on distorted domains; existing results are reused."""
    folder = config.output_dir / "distorted" / "-".join([distortion.replace(":", "-"), *names])
    if not (folder / "results.json").exists():
        sources = {**config.train_domains, **config.test_only_domains}
        asked = evaluate.Evaluation(
            model=str(config.output_dir / "model"),
            domains={name: sources[name] for name in names},
            output_dir=folder,
            distortion=distortion,
            batch_size=2 * config.batch_size,
            num_workers=config.num_workers,
            threads=torch.get_num_threads(),
            replicates=replicates,
        )
        evaluate.main(asked)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["domains"]


def write(
    protocol: Protocol,
    runs: Sequence[Run],
    cells: dict[tuple[str, str], Cell],
    table: list[list[str]],
    place: Path,
    remarks: list[str],
) -> None:
    """Write Markdown, CSV and PNG of a protocol; the remarks are at the end of the Markdown file."""
    seeds = sorted({run.seed for run in runs})
    text = [
        f"# {protocol.title}",
        f"In %, ours over {len(seeds)} seed{'s' if len(seeds) > 1 else ''} (mean ± standard deviation), the paper's "
        "figure in brackets. Test splits, frame level; epoch and threshold were chosen on the source domains' "
        "validation videos.",
        markdown(table),
        "What each run cost, and its AUC on the source domains' validation videos; means over settings and seeds:",
        markdown(budgets(protocol, runs)),
    ]
    refused = {f"{run.row.label}, {run.setting.label}: {run.refused}" for run in runs if run.refused}
    if refused:
        text.append("Not run:\n\n" + "\n".join(f"- {line}" for line in sorted(refused)))
    text += [f"![{protocol.title}]({place.name}.png)", *filter(None, remarks)]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_suffix(".md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    with place.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "column", "mean", "deviation", "seeds", "paper", *(f"seed {seed}" for seed in seeds)])
        for cell in cells.values():
            values = [f"{100 * value:.4f}" for value in cell.values]
            numbers = ["" if np.isnan(x) else f"{x:.4f}" for x in (cell.mean, cell.deviation)]
            writer.writerow([cell.row, cell.column, *numbers, len(values), cell.paper, *values])
    plots.save(picture_of(protocol, runs, cells), place.with_suffix(".png"))


def comparisons(protocol: Protocol, runs: Sequence[Run], replicates: int) -> list[str]:
    """Difference of each row's AUC from that of the `compare` row, with paired resampling of videos and seeds."""
    if protocol.compare is None:
        return []
    paths: dict[tuple[str, str], list[Path]] = {}
    for run in runs:
        if run.config is not None:
            path = run.config.output_dir / "scores.parquet"
            paths.setdefault((run.row.label, run.setting.label), []).append(path)
    rows = [["", "training data", "AUC", "95 %", f"minus {protocol.compare}", "95 %"]]
    settings = [[setting] for setting in protocol.settings]
    for chosen in [*settings, list(protocol.settings)] if len(settings) > 1 else settings:
        for label in [row.label for row in protocol.rows]:
            pairs = [((label, setting.label), (protocol.compare, setting.label), setting) for setting in chosen]
            if not all(own in paths and other in paths for own, other, _ in pairs):
                continue
            tables = (  # a generator, because all tables may not fit in memory
                ([*map(read_scores, paths[own])], [*map(read_scores, paths[other])], setting.test or setting.train)
                for own, other, setting in pairs
            )
            found = compare(tables, replicates)
            row = [label, chosen[0].label if len(chosen) == 1 else "mean", percent(found.method.value)]
            row.append(percent_interval(found.method.interval))
            if label != protocol.compare:
                row += [percent(found.difference.value), percent_interval(found.difference.interval)]
            rows.append(row + [""] * (6 - len(row)))
    text = (
        "AUC of frames, the mean over test domains and seeds. Intervals hold 95 % of the draws of test videos, "
        "the same for both rows, and of seeds."
    )
    return [text, markdown(rows, text_columns=2)] if len(rows) > 1 else []


def picture_of(protocol: Protocol, runs: Sequence[Run], cells: dict[tuple[str, str], Cell]) -> Any:
    """The protocol's plot."""
    columns, rows = columns_of(protocol), [row.label for row in protocol.rows]
    done = [run for run in runs if run.config is not None]
    if protocol.plot == "roc":
        first = [run for run in done if run.seed == done[0].seed and run.setting == done[0].setting]
        return plots.roc_curves(curves_of({run.row.label: run for run in first}))
    if protocol.plot == "attention":
        return attention_picture([run for run in done if run.seed == done[0].seed])
    means, deviations, paper = (
        np.array([[getattr(cells[row, column], key) for column in columns] for row in rows], dtype=float)
        for key in ("mean", "deviation", "paper")
    )
    if protocol.plot == "lines":
        places = [setting.label for setting in protocol.settings]
        return plots.lines(rows, places, means, deviations, protocol.figures[0].label, protocol.title)
    return plots.bars(rows, columns, means, deviations, paper)


def curves_of(runs: dict[str, Run]) -> dict[str, dict[str, DomainScores]]:
    """Scores by domain, then method."""
    curves: dict[str, dict[str, DomainScores]] = {}
    for label, run in runs.items():
        for domain, samples in split_domains(read_scores(run.planned.output_dir / "scores.parquet")).items():
            curves.setdefault(domain, {})[label] = samples
    return curves


def attention_picture(runs: Sequence[Run]) -> Any:
    """Last-block attention and rollout of each method on `PICTURES` pictures per class and test domain."""
    config = runs[0].planned
    pictures, titles = [], []
    for name, source in {**config.train_domains, **config.test_only_domains}.items():
        domain = load_domain(name, "test", **source.model_dump())
        for label, word in enumerate(("real", "fake")):
            for row in np.flatnonzero(domain.labels == label)[:PICTURES].tolist():
                pictures.append(read_picture(domain, row))
                titles.append(f"{name}, {word}")
    maps: dict[str, np.ndarray] = {}
    for run in runs:
        model = AutoModelForImageClassification.from_pretrained(run.planned.output_dir / "model")
        processor = AutoImageProcessor.from_pretrained(run.planned.output_dir / "model")
        pixel_values = torch.cat(
            [processor(images=picture, return_tensors="pt")["pixel_values"] for picture in pictures]
        )
        last, rollout = attention_maps(model, pixel_values)
        maps |= {f"{run.row.label}, last block": last.numpy(), f"{run.row.label}, rollout": rollout.numpy()}
    side = max(picture.size for picture in pictures)[0]
    squares = [ImageOps.fit(picture, (side, side)) for picture in pictures]  # the centre crop, as in the model's input
    return plots.attention_grid(squares, titles, maps)


def protocol_names() -> list[str]:
    """Names of all protocols."""
    return sorted(path.stem for path in (RECIPES / "protocols").glob("*.yaml"))


class ProtocolOptions(Options):
    """Which tables and figures to make."""

    names: Annotated[tuple[str, ...], Argument("NAME", positional=True)] = Field(
        description=f"One or more of {', '.join(protocol_names())}."
    )
    scale: str = Field("mini", description="mini, paper or real: a file in recipes/scales.")
    seeds: tuple[int, ...] = Field((0,), description="Seeds of the runs.")
    output_dir: Path = Field(Path("runs/protocols"), description="Folder of results and runs.")


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run the protocols of the command line and print their tables."""
    options = parse_options(ProtocolOptions, arguments, __doc__, program)
    keep_freed_memory()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = options.output_dir / options.scale
    with exit_on_error(program or "protocol.py"):
        for name in options.names:
            table = main(name, options.scale, options.seeds, folder)
            if PartialState().is_main_process:
                title = f"{name}, {options.scale}: ours, with the paper's figure in brackets, in %"
                Console(width=max(100, 16 * len(table[0]))).print(rich_table(table, title))
                print(f"{folder / name}.md, .csv, .png")


if __name__ == "__main__":
    run()
