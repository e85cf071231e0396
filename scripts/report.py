"""One page about one or several runs or evaluations: tables, curves, attention maps and the worst mistakes.

python scripts/report.py runs/drawn --output_dir runs/report
python scripts/report.py GM-DF=runs/gmdf CLIP=runs/direct_merge      # beside each other, the first one in detail

Writes report.html, one file with all pictures embedded, and report.md with a folder of pictures. A page about real data
shows faces of real people: --no_faces omits them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import ImageOps
from pydantic import Field, model_validator
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

import gmdf_hf.modeling.auto_gmdf  # noqa: F401  registers the model with the auto classes
from gmdf_hf.common.errors import UserError, exit_on_error
from gmdf_hf.common.images import ImageError
from gmdf_hf.common.options import Argument, Options, parse_options
from gmdf_hf.data.dataset import Domain
from gmdf_hf.evaluation import plots
from gmdf_hf.evaluation.attention import attention_maps
from gmdf_hf.evaluation.comparison import difference_table
from gmdf_hf.evaluation.report_page import Face, Part, Section, html_page, markdown_page
from gmdf_hf.evaluation.score_table import DomainScores
from gmdf_hf.evaluation.scoring import read_picture
from gmdf_hf.evaluation.tables import (
    coverage_table,
    cross_table,
    domain_table,
    method_table,
    overall,
    percent,
    percent_interval,
)
from gmdf_hf.training.scored_run import Scored

MISTAKES = 8  # per class and domain
THUMBNAIL = 112


def main(runs: Sequence[Scored], folder: Path, faces: bool = True) -> Path:
    """Write the report.

    Args:
        runs: Runs to show, the first one in detail.
        folder: Output folder for `report.html`, `report.md` and `pictures/`.
        faces: Whether to show faces.

    Returns:
        The HTML page.

    Raises:
        UserError: If a folder has no scores.
    """
    for run in runs:
        for name in ("scores.parquet", "results.json"):
            if not (run.folder / name).exists():
                raise UserError(f"{run.folder} holds no {name}: name a folder of meta_train.py or evaluate.py.")
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    first = runs[0]
    threshold = first.results["threshold"]
    drawn = {
        "roc": plots.roc_curves(_by_domain(runs)),
        "reliability": plots.reliability(first.domains),
        "histograms": plots.score_histograms(first.domains, threshold),
    }
    for name, figure in drawn.items():
        plots.save(figure, pictures / f"{name}.png")
    forgeries, unscored = method_table(first.results), coverage_table(first.results)
    sections = [
        Section(
            "Runs beside each other",
            [Part(table=comparison(runs), text_columns=2), *difference_parts(runs), *effect_parts(runs)],
        ),
        Section(
            f"{first.label} in detail",
            [
                Part(table=domain_table(first.results), text_columns=3),
                Part("Over all domains", table=overall(first.results)),
                Part("Reals of one domain against fakes of another: AUC in %", table=cross_table(first.results)),
                *([Part("Videos without a score, in four readings", table=unscored)] if len(unscored) > 1 else []),
                *(
                    [Part("Fakes of each forgery: AUC in %", table=forgeries, text_columns=2)]
                    if len(forgeries) > 1
                    else []
                ),
            ],
        ),
        Section("ROC curves", [Part(text="Frames of the test splits.", picture=pictures / "roc.png")]),
        Section("Scores", [Part(picture=pictures / "histograms.png")]),
        Section("Reliability", [Part(text="A point's area is its share.", picture=pictures / "reliability.png")]),
    ]
    if faces and first.has_pictures:
        domains = {name: first.load_domain(name) for name in first.domains}
        sections += [attention_section(first, domains, pictures), mistakes_section(first, domains, pictures)]
    title = "Deepfake detection: " + " and ".join(run.label for run in runs)
    introduction = (
        "Rates in %. Frames unless the level says video, whose score is the mean of its frames'. Intervals hold 95 % "
        f"of {first.replicates} draws of videos. Scores of at least {threshold:.3f} are called fake"
        f"{chosen(first.results)}."
    )
    (folder / "report.html").write_text(html_page(title, introduction, sections), encoding="utf-8")
    text = markdown_page(title, introduction, sections, folder)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return folder / "report.html"


def chosen(results: dict[str, Any]) -> str:
    """Text on the source of the threshold."""
    source = results.get("threshold_source", "validation videos of the source domains")
    return f", a threshold chosen on {source}" if source.startswith("validation") else f" (threshold: {source})"


def _by_domain(runs: Sequence[Scored]) -> dict[str, dict[str, DomainScores]]:
    names = list(dict.fromkeys(name for run in runs for name in run.domains))
    return {name: {run.label: run.domains[name] for run in runs if name in run.domains} for name in names}


def effect_parts(runs: Sequence[Scored]) -> list[Part]:
    """Table of the expert effect of the runs that have it; empty if none has."""
    rows = [["run", "experts, known domain", "experts, unknown", "text affine, known domain", "text affine, unknown"]]
    for run in runs:
        if (effect := run.results.get("expert_effect")) is not None:
            values = [effect[part][route] for part in ("experts", "text") for route in ("known", "unknown")]
            rows.append([run.label, *(f"{value:.3f}" for value in values)])
    text = (
        "Expert effect: standard deviation of the margin's change when the part is silenced, over that of the margin. "
        "Comparisons of expert variants count from 0.1."
    )
    return [Part(text=text, table=rows, text_columns=1)] if len(rows) > 1 else []


def comparison(runs: Sequence[Scored]) -> list[list[str]]:
    """One row per domain and level; AUC with interval and EER of every run."""
    header = ["domain", "level"]
    for run in runs:
        header += [f"{run.label} AUC", "95 %", "EER"]
    rows = [header]
    for domain, of_domain in _by_domain(runs).items():
        for level in ("frame", "video"):
            row = [domain, level]
            for run in runs:
                if run.label not in of_domain:
                    row += ["-"] * 3
                    continue
                figures = run.results["domains"][domain][level]
                ends = run.results["intervals"]["domains"][domain][level]["auc"]
                row += [percent(figures["auc"]), percent_interval(ends), percent(figures["eer"])]
            rows.append(row)
    return rows


def difference_parts(runs: Sequence[Scored]) -> list[Part]:
    """Paired comparison of every other run with the first; empty for one run."""
    first, *others = runs
    rows, notes = difference_table(first.scores, {run.label: run.scores for run in others}, first.replicates)
    text = (
        f"{first.label} minus another run, in points, on the same videos; Holm's correction for {len(rows) - 1} rows."
    )
    table = [Part("Differences", text, rows, 2)] if len(rows) > 1 else []
    return table + ([Part("Not compared", " ".join(notes))] if notes else [])


def attention_section(run: Scored, domains: dict[str, Domain], folder: Path) -> Section:
    """Attention maps on the first real and the first fake frame of every domain."""
    try:
        model = AutoModelForImageClassification.from_pretrained(run.model)
        processor = AutoImageProcessor.from_pretrained(run.model)
        faces = [
            (read_picture(domain, int(np.flatnonzero(domain.labels == label)[0])), f"{name}, {word}")
            for name, domain in domains.items()
            for label, word in enumerate(("real", "fake"))
        ]
        inputs = torch.cat([processor(images=face, return_tensors="pt")["pixel_values"] for face, _ in faces])
        last, rollout = attention_maps(model, inputs)
    except (OSError, ValueError, ImageError) as error:
        return Section("Attention", [Part(text=f"No attention maps: {' '.join(str(error).split())}")])
    side = max(max(face.size) for face, _ in faces)
    squares = [ImageOps.fit(face, (side, side)) for face, _ in faces]  # the centre crop, as in the model's input
    maps = {"last block": last.numpy(), "rollout": rollout.numpy()}
    plots.save(plots.attention_grid(squares, [title for _, title in faces], maps), folder / "attention.png")
    text = "What the class token attends to: in the last block, and by rollout over all blocks."
    return Section("Attention", [Part(text=text, picture=folder / "attention.png")])


def mistakes_section(run: Scored, domains: dict[str, Domain], folder: Path) -> Section:
    """Reals with the highest scores and fakes with the lowest, one frame per video."""
    threshold, parts = run.results["threshold"], []
    for name, domain in domains.items():
        scores = run.scores[run.scores["domain"] == name]
        keys = zip(domain.videos, domain.frame_numbers.tolist(), domain.labels.tolist(), strict=True)
        row_of = {key: row for row, key in enumerate(keys)}
        if "method" not in scores.columns or domain.methods is None:
            scores = scores.assign(method="")
        for label, word in enumerate(("reals called fake", "fakes called real")):
            wrong = scores[(scores["label"] == label) & ((scores["score"] >= threshold) == (label == 0))]
            worst = wrong.sort_values("score", ascending=label == 1)
            worst = worst.drop_duplicates(["method", "video_id"]).head(MISTAKES)
            faces = []
            for number, item in enumerate(worst.itertuples()):
                picture = read_picture(domain, row_of[(str(item.method), str(item.video_id)), item.frame, item.label])
                path = folder / f"mistake-{name}-{label}-{number}.jpg"
                ImageOps.fit(picture, (THUMBNAIL, THUMBNAIL)).save(path, quality=88)
                faces.append(Face(path, f"{item.score:.3f} {item.video_id}, frame {item.frame}"))
            text = "" if faces else "None."
            parts.append(Part(f"{name}: {word}, {len(wrong)} of {(scores['label'] == label).sum()}", text, faces=faces))
    return Section("Worst mistakes", parts)


class ReportOptions(Options):
    """Which runs to report on, and where."""

    runs: Annotated[tuple[str, ...], Argument("[LABEL=]FOLDER", positional=True)] = Field(
        description="Folders that `gmdf train` or `gmdf evaluate` wrote; the first one is shown in detail."
    )
    output_dir: Path = Field(Path("runs/report"), description="Folder of the report.")
    replicates: int = Field(1000, ge=1, description="Draws of the videos for the intervals.")
    no_faces: bool = Field(False, description="Show no pictures of the data.")

    def scored(self) -> list[Scored]:
        """Runs with their labels."""
        found = []
        for text in self.runs:
            label, is_named, folder = text.partition("=")
            path = Path(folder if is_named else text)
            found.append(Scored(label if is_named else path.name, path, self.replicates))
        return found

    @model_validator(mode="after")
    def _check_labels(self) -> ReportOptions:
        labels = [run.label for run in self.scored()]
        if len(set(labels)) < len(labels):
            raise ValueError(f"each run needs a label of its own, found {', '.join(labels)}")
        return self


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Write the report with the options of the command line and print its path."""
    options = parse_options(ReportOptions, arguments, __doc__, program)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with exit_on_error(program or "report.py"):
        print(main(options.scored(), options.output_dir, faces=not options.no_faces))


if __name__ == "__main__":
    run()
