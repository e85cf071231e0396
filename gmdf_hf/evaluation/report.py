"""Results of a run as console table and model card."""

from __future__ import annotations

import math
import re
from importlib.metadata import version
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from rich.console import Console
from rich.table import Table

from gmdf_hf.evaluation.metrics import m_eer
from gmdf_hf.evaluation.tables import role_of
from gmdf_hf.evaluation.training_data import TEST_DATA, describe_training, train_sources, training_data
from gmdf_hf.modeling import GMDFConfig
from gmdf_hf.preparation.manifests import manifest_digest

COLUMNS = ("domain", "", "frames", "ACC", "AUC", "EER", "M", "video AUC")
# Our metric name: metric type on the hub, display name.
METRICS = {
    "acc": ("accuracy", "Accuracy"),
    "auc": ("roc_auc", "AUC"),
    "ap": ("average_precision", "Average precision"),
    "eer": ("equal_error_rate", "Equal error rate"),
}


def result_rows(results: dict[str, Any]) -> list[list[str]]:
    """One row per test domain in the order of `COLUMNS`, rates in percent; `-` for a domain without readable images."""
    rows = []
    for name, figures in results["domains"].items():
        frame, video = figures["frame"], figures["video"]
        rates = [frame["acc"], frame["auc"], frame["eer"], frame["m"], video["auc"]]
        role = role_of(name, results["source_domains"])
        rows.append([name, role, str(frame["real"] + frame["fake"]), *(f"{100 * rate:.2f}" for rate in rates)])
    unread = results.get("unread_domains", [])
    return rows + [[name, role_of(name, results["source_domains"]), "0", *["-"] * 5] for name in unread]


def print_results(results: dict[str, Any]) -> None:
    """Print the metrics of every test domain, the threshold and the training cost."""
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
    """Markdown table of the metrics of every test domain."""
    header = [column or "role" for column in COLUMNS]
    rule = ["---" if column in COLUMNS[:2] else "---:" for column in COLUMNS]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *result_rows(results)])


def public_recipe(recipe: Any) -> Any:
    """Return the recipe without local directories: absolute and home paths are cut to their last component."""
    if isinstance(recipe, dict):
        return {key: public_recipe(value) for key, value in recipe.items()}
    if isinstance(recipe, (list, tuple)):
        return [public_recipe(value) for value in recipe]
    if isinstance(recipe, str) and (Path(recipe).is_absolute() or recipe.startswith(("~", "..")) or "\\" in recipe):
        return PureWindowsPath(recipe).name  # splits at both kinds of slash
    return recipe


def caveat(recipe: dict[str, Any], drawn: bool) -> str | None:
    """Return the warning at the head of the card for a model trained on drawings or on test data, else None."""
    sources = train_sources(recipe).values()
    if drawn:
        return (
            "Trained on drawings, not on photographs: this model demonstrates the software and does not detect "
            "real deepfakes."
        )
    if training_data(recipe)["kind"] == TEST_DATA:
        return "Trained on a small set of test data: this model demonstrates the software. Do not rely on it."
    learned_from = [(source.get("splits") or {}).get(split) for source in sources for split in ("train", "validation")]
    if any(split and "test" in split.lower() for split in learned_from):
        return (
            "Trained on the test split of a data set: results on that data set are not comparable with published ones."
        )
    return None


def data_rows(recipe: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, source and identity (digest or revision) of each training domain."""
    rows = []
    for name, source in train_sources(recipe).items():
        path = source["path"]
        digest = manifest_digest(path)
        if digest is not None:
            identity = f"sha256 of the manifest {digest}"
        elif path.startswith("drawn:"):
            identity = f"drawn by gmdf-hf {version('gmdf-hf')}"
        else:
            identity = f"revision {source.get('revision') or 'not pinned'}"
        rows.append((name, str(public_recipe(path)), identity))
    return rows


def eval_results(results: dict[str, Any]) -> list[EvalResult]:
    """Metrics of `results.json` as entries of the card's `model-index`."""
    entries = []
    for name, levels in results["domains"].items():
        role = role_of(name, results["source_domains"])
        for level in ("frame", "video"):
            for key, (kind, title) in METRICS.items():
                value = levels.get(level, {}).get(key)
                if value is not None and math.isfinite(value):
                    entries.append(
                        EvalResult(
                            task_type="image-classification",
                            task_name="Deepfake detection",
                            dataset_type=re.sub(r"[^A-Za-z0-9._-]+", "-", name),
                            dataset_name=f"{name} ({role} domain)",
                            dataset_split="test",
                            metric_type=kind,
                            metric_name=f"{title} ({level} level)",
                            metric_value=value,
                        )
                    )
    return entries


def write_model_card(
    template: Path,
    folder: Path,
    results: dict[str, Any],
    recipe: dict[str, Any],
    image_size: int,
    model_type: str,
    drawn: bool,
) -> None:
    """Write the model card of a run into the model's folder.

    Args:
        template: The repository's `model_card.md`.
        folder: The model's folder.
        results: Content of `results.json`.
        recipe: Configuration of the run.
        image_size: Side of the model's input in pixels.
        model_type: `model_type` of the model's configuration: `gmdf`, or that of a baseline.
        drawn: Whether a source domain consists of drawings.
    """
    backbone, is_gmdf = str(recipe.get("backbone", "")), model_type == GMDFConfig.model_type
    name = "GM-DF" if is_gmdf else PureWindowsPath(backbone).name
    title = f"{name} on {' + '.join(results['source_domains'])}"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license="apache-2.0",
        base_model=backbone if re.fullmatch(r"[\w.-]+/[\w.-]+", backbone) and not Path(backbone).exists() else None,
        tags=["deepfake-detection", *(("gm-df", "clip") if is_gmdf else ())],
        model_name=title,
        eval_results=eval_results(results),
    )
    text = results | {
        "title": title,
        "is_gmdf": is_gmdf,
        "backbone": public_recipe(backbone),
        "model_type": model_type,
        "source_domains": ", ".join(results["source_domains"]),
        "threshold": f"{results['threshold']:.3f}",
        "table": markdown_table(results),
        "m_eer": f"{100 * m_eer(results['domains']):.2f}",
        "recipe": yaml.safe_dump(public_recipe(recipe), sort_keys=False),
        "data": "\n".join(f"| {' | '.join(row)} |" for row in data_rows(recipe)),
        "image_size": image_size,
        "caveat": caveat(recipe, drawn),
        "trained_on": describe_training(SimpleNamespace(training_data=training_data(recipe))),
    }
    ModelCard.from_template(data, template_path=str(template), **text).save(folder / "README.md")
