"""Score a detector on domains: scores.parquet, a row a frame, and results.json, all figures with 95 % intervals.

python scripts/evaluate.py --model runs/drawn/model --domains compress=drawn:compress
python scripts/evaluate.py --model runs/drawn/model --recipe scripts/recipes/drawn.yaml --output_dir runs/scores
python scripts/evaluate.py --model user/some-vit-detector --fake_label AI --domains dfdc=/data/dfdc
python scripts/evaluate.py --model user/name --domains big=user/big --streaming   # no download first
ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/evaluate.py ...     # several processes share the frames

A killed run goes on where it was. On a CPU the scores are the same to the last bit for any number of processes and any
order of the data (of a stream: for its own order), as long as --batch_size and --threads are.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from accelerate import Accelerator
from pydantic import ValidationError
from rich.console import Console
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

import gmdf_hf.modeling.auto_gmdf  # noqa: F401  the auto classes then know the model
from gmdf_hf.common.errors import DomainError, UserError
from gmdf_hf.common.files import local_stamp, write_json
from gmdf_hf.common.locks import locked_folder
from gmdf_hf.common.schema import SPLITS, check_name
from gmdf_hf.data.dataset import Domain, load_domain
from gmdf_hf.data.distortions import DistortingProcessor, parse_distortion
from gmdf_hf.data.frames import caption_encoder, frame_of
from gmdf_hf.data.streams import Stream, load_stream
from gmdf_hf.evaluation.intervals import measure
from gmdf_hf.evaluation.metrics import crossing
from gmdf_hf.evaluation.score_parts import BatchQueue, claim_folder, frames_digest, join_parts, write_parts
from gmdf_hf.evaluation.scoring import Encoder, batch_domain, batch_stream, fake_class, score_batches
from gmdf_hf.evaluation.tables import domain_table, rich_table
from gmdf_hf.training.checkpoint import environment, write_skipped
from gmdf_hf.training.config import DomainSource


@dataclass(frozen=True)
class Evaluation:
    """What to score, and how.

    Attributes:
        model: Folder or hub id of an image classifier with two classes.
        domains: Where each domain's frames come from.
        output_dir: Folder of the results.
        split: Split of the domains.
        streaming: Whether domains are scored as they are read: nothing is downloaded first.
        revision: Commit, branch or tag of a model on the hub.
        trust_remote_code: Whether the model's own code may run.
        fake_label: Name of the model's fake class, where `real` and `fake` are not what its classes are called.
        threshold: Scores of at least this are called fake; None takes the model's own, and 0.5 where it has none.
        real_share: Prior P_real of Eq. 13; None for each domain's own share.
        distortion: `<kind>:<level>` of Table 10, applied to every image.
        batch_size: Images at a time.
        num_workers: Processes that decode images.
        threads: Threads of a process on a CPU.
        replicates: Times the videos are drawn for the intervals.
    """

    model: str
    domains: dict[str, DomainSource]
    output_dir: Path = Path("runs/evaluation")
    split: str = "test"
    streaming: bool = False
    revision: str | None = None
    trust_remote_code: bool = False
    fake_label: str | None = None
    threshold: float | None = None
    real_share: float | None = None
    distortion: str | None = None
    batch_size: int = 64
    num_workers: int = 0
    threads: int = 1
    replicates: int = 1000


def main(evaluation: Evaluation) -> dict[str, Any]:
    """Score every domain and measure the scores.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: If the evaluation is not possible as asked.
        DomainError: If a domain cannot be used.
    """
    accelerator = Accelerator()
    with locked_folder(evaluation.output_dir) if accelerator.is_main_process else nullcontext():
        return _score_and_measure(evaluation, accelerator)


def _score_and_measure(evaluation: Evaluation, accelerator: Accelerator) -> dict[str, Any]:
    if accelerator.device.type == "cpu":
        torch.set_num_threads(evaluation.threads)
    model, processor, fake = load_detector(evaluation)
    model.to(accelerator.device)
    if evaluation.distortion is not None:
        processor = DistortingProcessor(processor, *parse_distortion(evaluation.distortion))
    sources = sorted(evaluation.domains.items())
    domains: list[Domain] | list[Stream]
    with accelerator.main_process_first():  # the first process fills the cache of `datasets`
        if evaluation.streaming:
            domains = [load_stream(name, evaluation.split, **source.model_dump()) for name, source in sources]
        else:
            domains = [load_domain(name, evaluation.split, **source.model_dump()) for name, source in sources]
    size = evaluation.batch_size
    batched = [batch_stream(d, size) if isinstance(d, Stream) else batch_domain(d, size) for d in domains]
    encode_captions = captions_of(model, any(source.has_captions for source in batched), evaluation)
    with accelerator.main_process_first():
        claim_folder(evaluation.output_dir, request_of(evaluation, model, domains, accelerator.device.type))
    queues = [BatchQueue(source, evaluation.output_dir / "parts" / source.name, size) for source in batched]
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    for source, queue in zip(batched, queues, strict=True):
        mine = itertools.islice(queue, accelerator.process_index, None, accelerator.num_processes)
        scored = score_batches(model, source, mine, processor, size, evaluation.num_workers, encode_captions, fake)
        write_parts(queue.folder, scored)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        joined = [join_parts(queue.folder, queue.source.name, queue.frames) for queue in queues]
        scores = pd.concat([table for table, _ in joined], ignore_index=True)
        if not len(scores):
            raise UserError(f"No image could be read: {joined[0][1][0].reason}")
        scores.to_parquet(evaluation.output_dir / "scores.parquet")
        skipped = write_skipped(evaluation.output_dir / "skipped.csv", [item for _, items in joined for item in items])
        write_json(evaluation.output_dir / "environment.json", environment())
        results = results_of(evaluation, scores, model, skipped)
        write_json(evaluation.output_dir / "results.json", results)
    accelerator.wait_for_everyone()
    return json.loads((evaluation.output_dir / "results.json").read_text())


def load_detector(evaluation: Evaluation) -> tuple[torch.nn.Module, Any, int]:
    """The model, its own image processor, and the number of its fake class.

    Raises:
        UserError: If one of them cannot be had.
    """
    options = {"revision": evaluation.revision, "trust_remote_code": evaluation.trust_remote_code}
    try:
        model = AutoModelForImageClassification.from_pretrained(evaluation.model, **options)
        processor = AutoImageProcessor.from_pretrained(evaluation.model, **options)
        return model, processor, fake_class(model.config.id2label, evaluation.fake_label)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The model {evaluation.model!r} cannot be used: {' '.join(str(error).split())}") from error


def captions_of(model: torch.nn.Module, has_captions: bool, evaluation: Evaluation) -> Encoder | None:
    """The encoder of captions that a GM-DF of prompt P3 needs; its tokenizer stands in the model's folder.

    Raises:
        UserError: If there are captions and no tokenizer.
    """
    if getattr(model.config, "prompt", None) != "P3" or not has_captions:
        return None
    try:
        return caption_encoder(evaluation.model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The model {evaluation.model!r} has the prompt P3, which takes captions, and no tokenizer: save its "
            "backbone's tokenizer beside it."
        ) from error


def request_of(
    evaluation: Evaluation, model: torch.nn.Module, domains: list[Domain] | list[Stream], device: str
) -> dict[str, Any]:
    """All that the scores depend on."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    frames = {}
    for domain in domains:  # what a stream holds is known at its end: its parts keep watch over that
        if isinstance(domain, Domain):
            digest = frames_digest(frame_of(domain, row) for row in range(len(domain)))
            frames[domain.name] = f"{len(domain)} frames, {digest}"
    return {
        "model": evaluation.model,
        "weights": weights.hexdigest()[:16],
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


def results_of(evaluation: Evaluation, scores: pd.DataFrame, model: torch.nn.Module, skipped: int) -> dict[str, Any]:
    """What `results.json` holds; a figure that has no value is null there."""
    threshold, source = evaluation.threshold, "given"
    if threshold is None:
        # A detector of ours carries the one that its run chose on validation videos of its source domains.
        own = getattr(model.config, "threshold", None)
        threshold, source = (0.5, "default") if own is None else (own, "the model's own, chosen on validation videos")
    known = list(getattr(model.config, "domains", None) or [])
    results = {
        "model": evaluation.model,
        "split": evaluation.split,
        "distortion": evaluation.distortion,
        "threshold": threshold,
        "threshold_source": source,
        "source_domains": known,
        "unseen_domains": [name for name in evaluation.domains if known and name not in known],
        "skipped": skipped,
        "unread_domains": [name for name in evaluation.domains if not (scores["domain"] == name).any()],
        **measure(scores, threshold, evaluation.real_share, evaluation.replicates),
    }
    if evaluation.split == "validation" and scores["label"].nunique() == 2:
        # What to give as `threshold` when scoring the test split.
        results["crossing_threshold"] = crossing(scores["label"].to_numpy(), scores["score"].to_numpy()).threshold
    return null_for_nan(results)


def null_for_nan(value: Any) -> Any:
    """The same with None for every `nan`, which JSON does not know."""
    if isinstance(value, dict):
        return {key: null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def read_domains(pairs: list[str], recipe: Path | None) -> dict[str, DomainSource]:
    """Domains from `name=path` pairs, and from a recipe's source and unseen domains.

    Raises:
        UserError: If there are none, one is named twice, or one cannot be read.
    """
    fields: dict[str, Any] = {}
    if recipe is not None:
        try:
            content = yaml.safe_load(recipe.read_text()) or {}
            fields = {**content.get("source_domains", {}), **content.get("unseen_domains", {})}
        except (OSError, yaml.YAMLError, AttributeError) as error:
            raise UserError(f"The recipe {recipe} cannot be read: {' '.join(str(error).split())}") from error
    for pair in pairs:
        name, found, path = pair.partition("=")
        if not found or not name or not path or name in fields:
            raise UserError(f"--domains takes name=path pairs, each name once, found {pair!r}.")
        fields[name] = path
    if not fields:
        raise UserError("Nothing to score: name domains with --domains or --recipe.")
    try:
        return {check_name(name): DomainSource.model_validate(source) for name, source in fields.items()}
    except ValidationError as error:
        raise UserError(f"Domains: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from error
    except ValueError as error:
        raise UserError(f"Domains: {error}.") from error


def parse_command_line(arguments: list[str] | None = None) -> Evaluation:
    """Make an `Evaluation` from the command line.

    Raises:
        UserError: As `read_domains`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an image classifier with two classes")
    parser.add_argument("--domains", nargs="+", default=[], metavar="NAME=PATH", help="domains to score")
    parser.add_argument("--recipe", type=Path, help="recipe whose source and unseen domains to score")
    parser.add_argument("--output_dir", type=Path, default=Evaluation.output_dir, help="folder of the results")
    parser.add_argument("--split", choices=SPLITS, default=Evaluation.split, help="split of the domains")
    parser.add_argument("--streaming", action="store_true", help="score domains as they are read, not downloaded first")
    parser.add_argument("--revision", help="commit, branch or tag of a model on the hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="let the model's own code run")
    parser.add_argument("--fake_label", help="name of the model's fake class, if it is not a word for fake")
    parser.add_argument("--threshold", type=float, help="scores of at least this are called fake (default: the model's own, else 0.5)")  # fmt: skip  # noqa: E501
    parser.add_argument("--real_share", type=float, help="prior P_real of Eq. 13 (default: each domain's share)")
    parser.add_argument("--distortion", metavar="KIND:LEVEL", help="of Table 10, applied to every image")
    parser.add_argument("--batch_size", type=int, default=Evaluation.batch_size, help="images at a time")
    parser.add_argument("--num_workers", type=int, default=Evaluation.num_workers, help="processes that decode")
    parser.add_argument("--threads", type=int, default=Evaluation.threads, help="threads of a process on a CPU")
    parser.add_argument("--replicates", type=int, default=Evaluation.replicates, help="draws for the intervals")
    fields = vars(parser.parse_args(arguments))
    fields["domains"] = read_domains(fields["domains"], fields.pop("recipe"))
    return Evaluation(**fields)


if __name__ == "__main__":
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        evaluation = parse_command_line()
        results = main(evaluation)
    except (UserError, DomainError) as error:
        sys.exit(f"evaluate.py: {error}")
    if Accelerator().is_main_process:
        Console(width=140).print(
            rich_table(domain_table(results), f"{evaluation.model}, {evaluation.split} split, in %")
        )
        if results["skipped"]:
            print(f"{results['skipped']} images could not be read: {evaluation.output_dir / 'skipped.csv'}")
        print(f"scores: {evaluation.output_dir / 'scores.parquet'}")
