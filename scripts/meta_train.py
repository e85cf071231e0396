r"""Meta-train one detector on several domains (GM-DF, Algorithm 1) and score it on domains it never saw.

accelerate launch --quiet scripts/meta_train.py                                        # drawn faces, minutes on a CPU
accelerate launch --quiet scripts/meta_train.py --recipe scripts/recipes/paper.yaml    # the paper's setting
accelerate launch --quiet scripts/meta_train.py --seed 1 --hold_out '[swap]'           # any field of the recipe
accelerate launch --quiet scripts/meta_train.py --resume true                          # after a kill: go on
accelerate launch --quiet scripts/meta_train.py --method add_domain --backbone runs/x/model \
    --source_domains '{new: user/data}' --unseen_domains '{}'                          # one more domain's expert
accelerate launch --quiet scripts/meta_train.py --method direct_merge \
    --backbone google/vit-base-patch16-224                                             # any image classifier
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from tqdm import tqdm
from transformers import get_scheduler
from transformers.utils import logging as transformers_logging

from gmdf_hf.common.errors import UserError, exit_on_error
from gmdf_hf.common.files import write_config, write_json
from gmdf_hf.common.locks import locked_folder
from gmdf_hf.common.memory import keep_freed_memory
from gmdf_hf.common.processes import agree, average_over_processes, process_index, sum_gradients, wait_for_all
from gmdf_hf.common.schema import SCHEMA_VERSION
from gmdf_hf.data.drawn.domains import DRAWN_PREFIX
from gmdf_hf.data.frames import FrameReader
from gmdf_hf.evaluation.metrics import domain_metrics
from gmdf_hf.evaluation.precision import name_of, scoring_in
from gmdf_hf.evaluation.report import print_results, write_model_card
from gmdf_hf.evaluation.score_table import write_scores
from gmdf_hf.evaluation.selection import select
from gmdf_hf.evaluation.training_data import training_data
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.serving.hub import publish, published_files
from gmdf_hf.training.adapters import save_expert
from gmdf_hf.training.checkpoint import environment, save_model, write_skipped
from gmdf_hf.training.classifiers import image_side
from gmdf_hf.training.config import TrainConfig, parse_command_line
from gmdf_hf.training.diagnostics import expert_state, idle_warning, plot_history, record_failure, restore
from gmdf_hf.training.precision import resolve_precision
from gmdf_hf.training.setup import Setup, check_method, set_up
from gmdf_hf.training.training_state import History, Progress, Stopped, StopSignal, load_state, open_run, save_state

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "drawn.yaml"
MODEL_CARD = Path(__file__).parent / "model_card.md"
LOG_EVERY = 10


def main(config: TrainConfig) -> dict[str, Any]:
    """Run a recipe: train, choose the best epoch on the source domains' validation videos, score every test domain.

    Returns:
        Content of `results.json`.

    Raises:
        UserError: If the configuration cannot be run, or an iteration gives a non-finite loss or gradient.
        DomainError: If a domain cannot be used.
        Stopped: After SIGTERM.
    """
    check_method(config.backbone, config.method, config.train_tower, config.baseline_model)
    config = resolve_precision(config)
    run, fields = config.output_dir, config.model_dump(mode="json", exclude={"resume"})
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=config.report_to,
        project_dir=str(run),
        # The first process may draw, download or train a tokenizer while the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=4))],
    )
    with locked_folder(run) if accelerator.is_main_process else nullcontext():
        with accelerator.main_process_first():
            checkpoint = open_run(run, fields, config.resume, accelerator.is_main_process)
        if accelerator.is_main_process:
            write_config(run / "train_config.yaml", fields)
            write_json(run / "environment.json", environment())
        if config.report_to is not None:
            accelerator.init_trackers("gmdf", config={"recipe": str(fields)})
        setup = set_up(config, accelerator)
        with StopSignal() as stop:
            progress = train(config, setup, checkpoint, stop)
            with stop.at_once():
                results = evaluate(config, setup, progress)
    accelerator.end_training()
    return results


def train(config: TrainConfig, setup: Setup, checkpoint: Path | None, stop: StopSignal) -> Progress:
    """Training loop with checkpoints; every epoch ends with the selection of the best model."""
    accelerator, method, model, sampler = setup.accelerator, setup.method, setup.model, setup.sampler
    parameters = setup.parameters
    steps = min(config.max_steps or config.epochs * len(sampler), config.epochs * len(sampler))
    optimizer = accelerator.prepare_optimizer(torch.optim.Adam(parameters, lr=config.learning_rate))
    scheduler = get_scheduler(config.lr_scheduler, optimizer.optimizer, config.warmup_steps, steps)
    states = {"scheduler": scheduler} | ({"scaler": accelerator.scaler} if accelerator.scaler else {})
    joined_batch = config.batch_size * accelerator.num_processes
    progress, history = Progress(), History(config.output_dir / "history.jsonl", accelerator.is_main_process)
    if checkpoint is not None:
        progress = load_state(checkpoint, model, optimizer, states, method.state(), joined_batch)
        history.cut(progress.history)
    started = time.time() - progress.seconds

    def save() -> None:
        progress.history, progress.seconds = history.size(), time.time() - started
        progress.skipped = sorted(set(gather_object(progress.skipped)))
        if accelerator.is_main_process:
            folder = config.output_dir / "checkpoints"
            save_state(folder, progress, model, optimizer, states, method.state(), joined_batch, config.keep)
        wait_for_all()

    bar = tqdm(desc="meta-training", unit="it", total=steps, initial=progress.step, disable=not history.active)
    with bar:
        for epoch in range(progress.epoch, config.epochs):
            sampler.set_epoch(epoch, start=progress.iteration)
            model.train(method.trains_model)
            for batch in setup.loader if progress.iteration < len(sampler) and progress.step < steps else ():
                progress.skipped += batch["skipped"]
                # The seed and the iteration number determine all random numbers, so that a resumed run repeats them.
                torch.manual_seed(2**32 * config.seed + progress.step)
                episode = setup.episode_of(batch)
                if progress.iteration == 0 and (figures := method.describe_step(model, episode, accelerator)):
                    history.add({"step": progress.step, "epoch": epoch, "gradient_norms": figures})
                before = [tensor.detach().clone() for tensor in setup.restore_on_failure]
                losses = method.step(model, episode, accelerator)
                average_over_processes(setup.statistics)
                sum_gradients(parameters)
                accelerator.unscale_gradients(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
                values, stopped = agree(losses, norm, stop.received)
                # On a non-finite norm, a gradient scaler skips the step and lowers its scale.
                if not all(math.isfinite(values[name]) for name in (losses if accelerator.scaler else values)):
                    restore(setup.restore_on_failure, before)
                    save()
                    path, step = config.output_dir / "failure.json", progress.step + 1
                    raise UserError(record_failure(path, model, episode, batch["names"], step, values))
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.optimizer_step_was_skipped:  # an overflow: undo the whole iteration
                    restore(setup.restore_on_failure, before)
                    progress.overflows += 1
                else:
                    scheduler.step()
                progress.step, progress.iteration = progress.step + 1, progress.iteration + 1
                bar.update()
                if progress.step % LOG_EVERY == 0 or progress.step == steps:
                    values |= {"learning_rate": scheduler.get_last_lr()[0]}
                    if accelerator.scaler:
                        values |= {"overflows": progress.overflows}
                    history.add({"step": progress.step, "epoch": epoch, **values})
                    accelerator.log(values, step=progress.step)
                    rate = progress.step * len(setup.train) * joined_batch / (time.time() - started)
                    bar.set_postfix(
                        {name: f"{value:.3g}" for name, value in values.items()} | {"images/s": f"{rate:.0f}"}
                    )
                if stopped or (config.save_steps and progress.step % config.save_steps == 0):
                    save()
                if stopped:
                    raise Stopped(f"SIGTERM after iteration {progress.step}: go on with --resume true")
                if progress.step == steps:
                    break
            save()
            with stop.at_once():
                choose(config, setup, progress, history)
            progress.epoch, progress.iteration = epoch + 1, 0
            if progress.step == steps:
                break
    progress.seconds = time.time() - started
    return progress


def choose(config: TrainConfig, setup: Setup, progress: Progress, history: History) -> None:
    """Score the source domains' validation splits and save the model if it is the best so far."""
    scores, unread = setup.score(setup.method.route(setup.model), setup.validation)
    progress.skipped += unread
    if setup.accelerator.is_main_process:
        write_skipped(config.output_dir / "skipped.csv", progress.skipped)
    mean_auc, threshold = select(scores, [domain.name for domain in setup.validation])
    record = {"step": progress.step, "epoch": progress.epoch, "validation_auc": mean_auc}
    if config.method == "gmdf":
        with scoring_in(setup.model, setup.dtype):
            record |= expert_state(cast(GMDFModel, setup.model), FrameReader(setup.validation, setup.processor))
    history.add(record)
    setup.accelerator.log({"validation_auc": mean_auc}, step=progress.step)
    if mean_auc > progress.best:
        progress.best, progress.threshold = mean_auc, threshold
        if config.method == "gmdf":
            setup.model.config.expert_effect = record["expert_effect"]
        if config.method != "add_domain":  # its threshold is for one route, not for the detector
            setup.model.config.threshold = min(threshold, 1.0)
            setup.model.config.training_data = training_data(config.model_dump(mode="json"))
        if setup.accelerator.is_main_process:
            state = setup.method.saved_state(setup.model)
            place = config.output_dir / "model"
            save_model(place, setup.model, setup.processor, state_dict=state, **setup.save_options)
            if config.method == "add_domain":
                save_expert(cast(GMDFModel, setup.model), setup.train[0].name, config.output_dir / "expert")


def evaluate(config: TrainConfig, setup: Setup, progress: Progress) -> dict[str, Any]:
    """Score the test splits once with the best model and write the results of the run."""
    wait_for_all()
    run, main = config.output_dir, setup.accelerator.is_main_process
    model = type(setup.model).from_pretrained(run / "model").to(setup.accelerator.device)
    scores, unread = setup.score(setup.method.route(model), setup.test)
    skipped = sorted(set(gather_object(progress.skipped + unread)))
    results = {
        "schema_version": SCHEMA_VERSION,
        "model": str(run / "model"),
        "revision": None,  # a new model has none before it is published
        "method": config.method,
        "seed": config.seed,
        "dtype": name_of(setup.dtype),
        "steps": progress.step,
        "images": progress.step * len(setup.train) * config.batch_size * setup.accelerator.num_processes,
        "train_seconds": round(progress.seconds, 1),
        "validation_auc": progress.best,
        "threshold": progress.threshold,
        "source_domains": [domain.name for domain in setup.train],
        "unseen_domains": list(config.test_only_domains),
        "skipped": len(skipped),
        "expert_effect": getattr(model.config, "expert_effect", None) if config.method == "gmdf" else None,
        "unread_domains": [domain.name for domain in setup.test if not (scores["domain"] == domain.name).any()],
        "domains": domain_metrics(scores, progress.threshold),
    }
    if main:
        about = {name: results[name] for name in ("model", "revision", "threshold", "dtype")}
        write_scores(run / "scores.parquet", scores, about)
        write_skipped(run / "skipped.csv", skipped)
        plot_history(run / "history.jsonl", run / "history.png")
        write_model_card(
            MODEL_CARD,
            run / "model",
            results,
            config.model_dump(mode="json"),
            image_side(setup.processor),
            model.config.model_type,
            drawn=any(source.path.startswith(DRAWN_PREFIX) for source in config.train_domains.values()),
        )
        write_json(run / "results.json", results)
        if config.push_to_hub is not None:
            print(publish(published_files(run, config.push_to_hub), config.push_to_hub, f"Publish {run.name}"))
    return results


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Train with the recipe and the options of the command line, and print the results."""
    keep_freed_memory()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with exit_on_error(program or "meta_train.py"):
        config = parse_command_line(None if arguments is None else list(arguments), __doc__, DEFAULT_RECIPE)
        results = main(config)
    if process_index() == 0:
        print_results(results)
        effect = results["expert_effect"]
        if effect is not None and (warning := idle_warning(effect)):
            print(warning)
        print(f"model: {config.output_dir / 'model'}")


if __name__ == "__main__":
    run()
