"""Score a detector on domains: scores.parquet, a row a frame, and results.json, all figures with 95 % intervals.

python scripts/evaluate.py --model runs/drawn/model --domains compress=drawn:compress
python scripts/evaluate.py --model runs/drawn/model --recipe scripts/recipes/drawn.yaml --output_dir runs/scores
python scripts/evaluate.py --model user/some-vit-detector --fake_label AI --domains dfdc=/data/dfdc
python scripts/evaluate.py --model user/name --domains big=user/big --streaming   # no download first
python scripts/evaluate.py --scores foreign.csv     # figures and intervals of anybody's scores; then gmdf report
ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/evaluate.py ...     # several processes share the frames

A killed run resumes from its last complete part. On a CPU the scores are bit-identical for any number of processes and
any order of the data (for a stream: in the same order), with the same --batch_size and --threads.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import pandas as pd
import torch
from accelerate import Accelerator
from pydantic import Field, model_validator
from rich.console import Console
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from gmdf_hf.common.errors import UserError, exit_on_error
from gmdf_hf.common.files import local_stamp, write_json
from gmdf_hf.common.locks import locked_folder
from gmdf_hf.common.memory import keep_freed_memory
from gmdf_hf.common.options import Argument, PrecisionOptions, parse_options
from gmdf_hf.common.schema import SCHEMA_VERSION, check_name
from gmdf_hf.data.dataset import Domain, load_domain
from gmdf_hf.data.distortions import DistortingProcessor, parse_distortion
from gmdf_hf.data.frames import caption_encoder, frame_of
from gmdf_hf.data.streams import Stream, load_stream
from gmdf_hf.evaluation.classifier import find_operating_point, load_classifier, split_revision, weights_digest
from gmdf_hf.evaluation.coverage import scored_rows
from gmdf_hf.evaluation.foreign_scores import read_foreign_scores
from gmdf_hf.evaluation.intervals import measure
from gmdf_hf.evaluation.metrics import crossing
from gmdf_hf.evaluation.precision import name_of, scoring_dtype
from gmdf_hf.evaluation.score_parts import BatchQueue, claim_folder, frames_digest, join_parts, write_parts
from gmdf_hf.evaluation.score_table import write_scores
from gmdf_hf.evaluation.scoring import Encoder, batch_domain, batch_stream, score_batches
from gmdf_hf.evaluation.tables import coverage_table, domain_table, rich_table
from gmdf_hf.training.checkpoint import environment, write_skipped
from gmdf_hf.training.domain_source import DomainSource, recipe_domains


class Evaluation(PrecisionOptions):
    """What to score, and how."""

    model: str | None = Field(None, description="Folder or hub id (user/name@v1) of a classifier with two classes.")
    scores: Path | None = Field(
        None,
        description="Instead of --model and --domains: score table of any detector, CSV or Parquet with the columns "
        "label, score, and optionally domain, video_id, frame, method; an empty score is a video without one.",
    )
    domains: Annotated[dict[str, DomainSource], Argument("NAME=PATH")] = Field({}, description="Domains to score.")
    labels: Annotated[dict[str, Literal["real", "fake"]], Argument("NAME=CLASS")] = Field(
        {}, description="real or fake for class names of the domains that do not say it, such as ai_art=fake or 0=fake."
    )
    recipe: Path | None = Field(None, description="Recipe whose source and unseen domains to score.")
    output_dir: Path = Field(Path("runs/evaluation"), description="Folder of the results.")
    split: Literal["train", "validation", "test"] = Field("test", description="Split of the domains.")
    streaming: bool = Field(False, description="Score domains as they are read: nothing is downloaded first.")
    revision: str | None = Field(None, description="Commit, branch or tag of a model on the hub.")
    trust_remote_code: bool = Field(False, description="Let the model's own code run.")
    fake_label: str | None = Field(None, description="Name of the model's fake class, if it is not a word for fake.")
    threshold: float | None = Field(
        None,
        description="Call scores of at least this fake (default: of the operating point, else of the model, else 0.5).",
    )
    real_share: float | None = Field(
        None, ge=0, le=1, description="Prior P_real of Eq. 13 (default: each domain's own share)."
    )
    distortion: Annotated[str | None, Argument("KIND:LEVEL")] = Field(
        None, description="Distortion of Table 10, applied to every image."
    )
    batch_size: int = Field(64, ge=1, description="Images at a time.")
    num_workers: int = Field(0, ge=0, description="Processes that decode images.")
    threads: int = Field(1, ge=1, description="Threads of a process on a CPU.")
    replicates: int = Field(1000, ge=1, description="Draws of the videos for the intervals.")

    @model_validator(mode="before")
    @classmethod
    def _read_domains(cls, fields: dict[str, Any]) -> dict[str, Any]:
        domains = dict(fields.get("domains", {}))
        if fields.get("recipe") is not None:
            of_recipe = recipe_domains(Path(fields["recipe"]))
            if twice := sorted(domains.keys() & of_recipe.keys()):
                raise ValueError(f"the domain {twice[0]!r} is in --domains and in the recipe")
            domains = of_recipe | domains
        if fields.get("scores") is not None:
            if domains or fields.get("model") is not None:
                raise ValueError("--scores is a finished table: leave out --model, --domains and --recipe")
            return fields
        if not domains:
            raise ValueError("nothing to score: name domains with --domains or --recipe")
        for name, source in domains.items():
            check_name(name)
            if labels := fields.get("labels"):
                source = DomainSource.model_validate(source)
                domains[name] = source.model_copy(update={"labels": labels | source.labels})
        return fields | {"domains": domains}


def main(evaluation: Evaluation) -> dict[str, Any]:
    """Score every domain and compute the figures.

    Returns:
        Content of `results.json`.

    Raises:
        UserError: If the evaluation cannot be run with these options.
        DomainError: If a domain cannot be used.
    """
    if evaluation.scores is not None:
        return _measure_foreign(evaluation, evaluation.scores)
    accelerator = Accelerator()
    with locked_folder(evaluation.output_dir) if accelerator.is_main_process else nullcontext():
        return _score_and_measure(evaluation, accelerator)


def _measure_foreign(evaluation: Evaluation, path: Path) -> dict[str, Any]:
    """Figures of a score table of another program."""
    with locked_folder(evaluation.output_dir):
        scores = read_foreign_scores(path)
        if (evaluation.output_dir / "request.json").exists():
            raise UserError(
                f"{evaluation.output_dir} holds scores of a detector, expected an empty folder or figures of a table.",
                "Choose another --output_dir.",
            )
        results = results_of(evaluation, scores, None, 0)
        write_scores(evaluation.output_dir / "scores.parquet", scores, {"threshold": results["threshold"]})
        write_json(evaluation.output_dir / "results.json", results)
        return results


def _score_and_measure(evaluation: Evaluation, accelerator: Accelerator) -> dict[str, Any]:
    if accelerator.device.type == "cpu":
        torch.set_num_threads(evaluation.threads)
    assert evaluation.model is not None  # checked by the options
    found = load_classifier(evaluation.model, evaluation.revision, evaluation.trust_remote_code, evaluation.fake_label)
    model, processor, fake = found.model, found.processor, found.fake
    cast(torch.nn.Module, model).to(accelerator.device)
    if evaluation.distortion is not None:
        processor = DistortingProcessor(processor, *parse_distortion(evaluation.distortion))
    sources = sorted(evaluation.domains.items())
    domains: list[Domain] | list[Stream]
    with accelerator.main_process_first():  # the first process fills the cache of `datasets`
        if evaluation.streaming:
            domains = [load_stream(name, evaluation.split, **source.model_dump()) for name, source in sources]
        else:
            domains = [load_domain(name, evaluation.split, **source.model_dump()) for name, source in sources]
    size, dtype = evaluation.batch_size, scoring_dtype(evaluation.dtype, accelerator.device, model)
    batched = [batch_stream(d, size) if isinstance(d, Stream) else batch_domain(d, size) for d in domains]
    encode_captions = captions_of(model, any(source.has_captions for source in batched), evaluation)
    with accelerator.main_process_first():
        request = request_of(evaluation, model, domains, accelerator.device.type) | {"dtype": name_of(dtype)}
        claim_folder(evaluation.output_dir, request)
    queues = [BatchQueue(source, evaluation.output_dir / "parts" / source.name, size) for source in batched]
    accelerator.wait_for_everyone()  # no process writes before all have read the folder
    for source, queue in zip(batched, queues, strict=True):
        mine = itertools.islice(queue, accelerator.process_index, None, accelerator.num_processes)
        how = (processor, size, evaluation.num_workers, encode_captions, fake, dtype)
        write_parts(queue.folder, score_batches(model, source, mine, *how))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        joined = [join_parts(queue.folder, queue.source.name, queue.frames) for queue in queues]
        scores = pd.concat([table for table, _ in joined], ignore_index=True)
        if scores["score"].isna().all():
            raise UserError(f"No image could be read: {joined[0][1][0].reason}")
        skipped = write_skipped(evaluation.output_dir / "skipped.csv", [item for _, items in joined for item in items])
        write_json(evaluation.output_dir / "environment.json", environment())
        results = results_of(evaluation, scores, model, skipped) | {"dtype": name_of(dtype)}
        about = {name: results[name] for name in ("model", "revision", "threshold", "dtype")}
        write_scores(evaluation.output_dir / "scores.parquet", scores, about)
        write_json(evaluation.output_dir / "results.json", results)
    accelerator.wait_for_everyone()
    return json.loads((evaluation.output_dir / "results.json").read_text(encoding="utf-8"))


def captions_of(model: torch.nn.Module, has_captions: bool, evaluation: Evaluation) -> Encoder | None:
    """Caption encoder for a GM-DF with prompt P3; the tokenizer is in the model's folder.

    Raises:
        UserError: If there are captions but no tokenizer.
    """
    if getattr(model.config, "prompt", None) != "P3" or not has_captions:
        return None
    try:
        return caption_encoder(split_revision(str(evaluation.model))[0])
    except (OSError, ValueError) as error:
        raise UserError(
            f"The model {evaluation.model!r} has the prompt P3, which takes captions, and no tokenizer: save its "
            "backbone's tokenizer beside it."
        ) from error


def request_of(
    evaluation: Evaluation, model: torch.nn.Module, domains: list[Domain] | list[Stream], device: str
) -> dict[str, Any]:
    """Inputs that determine the scores, for comparison with an earlier run."""
    frames = {}
    for domain in domains:  # the content of a stream is known only at its end and checked with its parts
        if isinstance(domain, Domain):
            digest = frames_digest(frame_of(domain, row) for row in range(len(domain)))
            frames[domain.name] = f"{len(domain)} frames, {digest}"
    return {
        "model": evaluation.model,
        "weights": weights_digest(model),
        "split": evaluation.split,
        "streaming": evaluation.streaming,
        "fake_label": evaluation.fake_label,
        "distortion": evaluation.distortion,
        "batch_size": evaluation.batch_size,
        "threads": evaluation.threads if device == "cpu" else None,
        "device": device,
        "domains": {name: source.model_dump() for name, source in evaluation.domains.items()},
        "data": {name: local_stamp(source.path) for name, source in evaluation.domains.items()},
        "frames": frames,
    }


def results_of(
    evaluation: Evaluation, scores: pd.DataFrame, model: PreTrainedModel | None, skipped: int
) -> dict[str, Any]:
    """Content of `results.json`; undefined figures are null."""
    threshold, source = evaluation.threshold, "given"
    if threshold is None:
        # A GM-DF stores the threshold that its run chose on validation videos of its source domains.
        own = None if model is None else getattr(model.config, "threshold", None)
        name = evaluation.model
        point = None if model is None or name is None else find_operating_point(model, name, evaluation.revision)
        threshold, source = (0.5, "default") if own is None else (own, "the model's own, chosen on validation videos")
        if point is not None:
            threshold, source = point.threshold, f"the operating point's: {point.describe()}"
    known = [] if model is None else list(getattr(model.config, "domains", None) or [])

    def read(domain: str) -> pd.Series:
        return (scores["domain"] == domain) & scores["score"].notna()

    results = {
        "schema_version": SCHEMA_VERSION,
        "model": evaluation.model,
        "revision": evaluation.revision,
        "split": evaluation.split,
        "distortion": evaluation.distortion,
        "threshold": threshold,
        "threshold_source": source,
        "source_domains": known,
        "unseen_domains": [name for name in evaluation.domains if known and name not in known],
        "skipped": skipped,
        "unread_domains": [name for name in evaluation.domains if not read(name).any()],
        **measure(scores, threshold, evaluation.real_share, evaluation.replicates),
    }
    rows = scored_rows(scores)
    if evaluation.split == "validation" and rows["label"].nunique() == 2:
        # Value for `threshold` when the test split is scored.
        results["crossing_threshold"] = crossing(rows["label"].to_numpy(), rows["score"].to_numpy()).threshold
    return null_for_nan(results)


def null_for_nan(value: Any) -> Any:
    """Replace `nan`, which JSON does not support, by None."""
    if isinstance(value, dict):
        return {key: null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Evaluate with the options of the command line and print the table."""
    evaluation = parse_options(Evaluation, arguments, __doc__, program)
    keep_freed_memory()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with exit_on_error(program or "evaluate.py"):
        results = main(evaluation)
    if evaluation.scores is not None or Accelerator().is_main_process:
        title = str(evaluation.scores or f"{evaluation.model}, {evaluation.split} split")
        Console(width=160).print(rich_table(domain_table(results), f"{title}, in %"))
        if len(rows := coverage_table(results)) > 1:
            Console(width=160).print(rich_table(rows, "Videos without a score, read in four ways: video level, in %"))
        if results["skipped"]:
            print(f"{results['skipped']} images could not be read: {evaluation.output_dir / 'skipped.csv'}")
        print(f"scores: {evaluation.output_dir / 'scores.parquet'}")


if __name__ == "__main__":
    run()
