"""Results of a run for people to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from rich.console import Console
from rich.table import Table

from gmdf_hf.metrics import m_eer

COLUMNS = ("domain", "", "frames", "ACC", "AUC", "EER", "M", "video AUC")


def result_rows(results: dict[str, Any]) -> list[list[str]]:
    """A row of text a test domain, in the order of `COLUMNS`, rates in percent."""
    rows = []
    for name, figures in results["domains"].items():
        frame, video = figures["frame"], figures["video"]
        rates = [frame["acc"], frame["auc"], frame["eer"], frame["m"], video["auc"]]
        role = "unseen" if name in results["unseen_domains"] else "source"
        rows.append([name, role, str(frame["real"] + frame["fake"]), *(f"{100 * rate:.2f}" for rate in rates)])
    return rows


def print_results(results: dict[str, Any]) -> None:
    """Print the figures of every test domain, and what they rest on."""
    table = Table(title=f"{results['method']}, seed {results['seed']}: test splits, frame level but the last, in %")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for row in result_rows(results):
        table.add_row(*row)
    console = Console(width=100)
    console.print(table)
    console.print(f"M_EER, the worst domain (Eq. 13): {100 * m_eer(results['domains']):.2f} %")
    console.print(
        f"Threshold {results['threshold']:.3f} and epoch were chosen on the source domains' validation videos. "
        f"{results['images']} images in {results['train_seconds']:.0f} s, "
        f"{results['skipped']} unreadable ones skipped.",
        soft_wrap=True,
    )


def markdown_table(results: dict[str, Any]) -> str:
    """The figures of every test domain as a table in Markdown."""
    header = [column or "role" for column in COLUMNS]
    rule = ["---" if column in COLUMNS[:2] else "---:" for column in COLUMNS]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *result_rows(results)])


def write_model_card(
    template: Path, folder: Path, results: dict[str, Any], recipe: dict[str, Any], image_size: int, drawn: bool
) -> None:
    """Fill the model card from a run and put it beside the model.

    Args:
        template: The repository's `model_card.md`.
        folder: The model's folder.
        results: What `results.json` holds.
        recipe: The run's configuration.
        image_size: Side of the model's images in pixels.
        drawn: Whether a source domain is of drawings, which the card's first line then says.
    """
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license="apache-2.0",
        tags=["deepfake-detection", "gm-df", "clip"],
    )
    text = results | {
        "title": f"GM-DF on {' + '.join(results['source_domains'])}",
        "source_domains": ", ".join(results["source_domains"]),
        "threshold": f"{results['threshold']:.3f}",
        "table": markdown_table(results),
        "m_eer": f"{100 * m_eer(results['domains']):.2f}",
        "recipe": yaml.safe_dump(recipe, sort_keys=False),
        "image_size": image_size,
        "drawn": drawn,
    }
    ModelCard.from_template(data, template_path=str(template), **text).save(folder / "README.md")
