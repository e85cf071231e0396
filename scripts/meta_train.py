"""Meta-train one detector on several domains (GM-DF, Algorithm 1) and score it on domains it never saw.

accelerate launch --quiet scripts/meta_train.py                                        # drawn faces, minutes on a CPU
accelerate launch --quiet scripts/meta_train.py --recipe scripts/recipes/paper.yaml    # the paper's setting
accelerate launch --quiet scripts/meta_train.py --seed 1 --hold_out '[swap]'           # any field of the recipe
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from gmdf_hf import TINY_CLIP
from gmdf_hf.checkpoint import append_history, environment, save_model, write_config, write_json, write_skipped
from gmdf_hf.codes import make_image_tokenizer
from gmdf_hf.config import TrainConfig, UserError, parse_command_line
from gmdf_hf.dataset import DRAWN_PREFIX, Domain, DomainError, FrameReader, check_leaks, collate, load_domain
from gmdf_hf.episodes import EpisodeSampler
from gmdf_hf.losses import classification_loss
from gmdf_hf.meta import Episode, inner_loss, outer_losses, update_experts
from gmdf_hf.metrics import crossing, domain_metrics
from gmdf_hf.modeling import GMDFImageProcessor, GMDFModel
from gmdf_hf.modeling.configuration_gmdf import PROMPT_TEMPLATES
from gmdf_hf.report import print_results, write_model_card
from gmdf_hf.scoring import score_domain
from gmdf_hf.sources.record import SPLITS

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "drawn.yaml"
MODEL_CARD = Path(__file__).parent.parent / "model_card.md"


def main(config: TrainConfig) -> dict[str, Any]:
    """Run a recipe: train, choose the best epoch on the source domains' validation videos, score every test domain.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: If the run is not possible as asked.
        DomainError: If a domain cannot be used.
    """
    started = time.time()
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=config.report_to, project_dir=str(config.output_dir)
    )
    if accelerator.num_processes > 1:
        raise UserError(
            f"meta_train.py runs on one process so far, found {accelerator.num_processes}: launch it with "
            "`accelerate launch --num_processes 1`."
        )
    set_seed(config.seed)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    history = config.output_dir / "history.jsonl"
    history.unlink(missing_ok=True)
    write_config(config.output_dir / "train_config.yaml", config.model_dump(mode="json"))
    write_json(config.output_dir / "environment.json", environment())
    if config.report_to is not None:
        accelerator.init_trackers("gmdf", config={"recipe": str(config.model_dump(mode="json"))})

    train, validation, test = load_domains(config)
    backbone = str(TINY_CLIP) if config.backbone == "tiny_clip" else config.backbone
    try:
        model = GMDFModel.from_clip(
            backbone, domains=[domain.name for domain in train], image_size=config.image_size, **config.model
        )
    except (OSError, ValueError) as error:
        raise UserError(f"The backbone {config.backbone!r} cannot be used: {' '.join(str(error).split())}") from error
    model.to(accelerator.device)
    processor = GMDFImageProcessor.of_size(model.config.vision_config.image_size)
    encode_captions = caption_encoder(backbone) if model.config.prompt == "P3" else None
    if config.method == "direct_merge":
        for parameter in model.expert_parameters().values():
            parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(model.shared_parameters().values(), lr=config.learning_rate)

    sampler = EpisodeSampler(
        [domain.labels for domain in train], [domain.video_ids for domain in train], config.batch_size, config.seed
    )
    loader = DataLoader(
        FrameReader(train, processor),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=config.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=config.num_workers > 0,
    )
    skipped: list = []
    image_tokenizer = None
    if config.method == "gmdf" and config.mim_weight > 0:
        image_tokenizer = make_image_tokenizer(
            config.image_tokenizer,
            model.config,
            training_crops(sampler, loader, config.epochs),
            config.image_tokenizer_steps,
            accelerator.device,
            config.output_dir / "image_tokenizer",
        )

    steps = min(config.max_steps or config.epochs * len(sampler), config.epochs * len(sampler))
    generator = torch.Generator().manual_seed(config.seed)  # masks and flips
    best, step = -1.0, 0
    bar = tqdm(total=steps, desc="meta-training", unit="it", disable=not accelerator.is_main_process)
    for epoch in range(config.epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            skipped += batch["skipped"]
            episode = make_episode(batch, len(train), encode_captions, generator).to(accelerator.device)
            model.train()
            optimizer.zero_grad()
            if config.method == "gmdf":
                losses = meta_step(model, episode, config, image_tokenizer, generator, accelerator)
            else:
                losses = merged_step(model, episode, accelerator)
            optimizer.step()
            step += 1
            bar.update()
            if step % 10 == 0 or step == steps:
                values = {name: loss.item() for name, loss in losses.items()}
                rate = step * len(train) * config.batch_size / bar.format_dict["elapsed"]
                bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()} | {"images/s": f"{rate:.0f}"})
                append_history(history, {"step": step, "epoch": epoch, **values})
                accelerator.log(values, step=step)
            if step == steps:
                break
        scores, unread = score_all(model, validation, processor, config, encode_captions)
        skipped += unread
        figures = domain_metrics(scores)
        mean_auc = sum(figure["frame"]["auc"] for figure in figures.values()) / len(figures)
        append_history(history, {"step": step, "epoch": epoch, "validation_auc": mean_auc})
        accelerator.log({"validation_auc": mean_auc}, step=step)
        if mean_auc > best:
            best = mean_auc
            threshold = crossing(scores["label"].to_numpy(), scores["score"].to_numpy()).threshold
            # Template P3 needs the text tower whenever an image brings a caption.
            slim = config.save_slim and encode_captions is None
            save_model(config.output_dir / "model", model, processor, slim=slim)
        if step == steps:
            break
    bar.close()
    train_seconds = time.time() - started

    model = GMDFModel.from_pretrained(config.output_dir / "model").to(accelerator.device)
    scores, unread = score_all(model, test, processor, config, encode_captions)
    skipped += unread
    scores.to_parquet(config.output_dir / "scores.parquet")
    results = {
        "method": config.method,
        "seed": config.seed,
        "steps": step,
        "images": step * len(train) * config.batch_size,
        "train_seconds": round(train_seconds, 1),
        "validation_auc": best,
        "threshold": threshold,
        "source_domains": [domain.name for domain in train],
        "unseen_domains": list(config.test_only_domains),
        "skipped": write_skipped(config.output_dir / "skipped.csv", skipped),
        "domains": domain_metrics(scores, threshold),
    }
    write_json(config.output_dir / "results.json", results)
    write_model_card(
        MODEL_CARD,
        config.output_dir / "model",
        results,
        config.model_dump(mode="json"),
        model.config.vision_config.image_size,
        drawn=any(source.path.startswith(DRAWN_PREFIX) for source in config.train_domains.values()),
    )
    accelerator.end_training()
    return results


def load_domains(config: TrainConfig) -> tuple[list[Domain], list[Domain], list[Domain]]:
    """Train and validation splits of the source domains, and test splits of all, the unseen ones last."""
    splits: dict[str, list[Domain]] = {split: [] for split in SPLITS}
    for name, source in config.train_domains.items():
        of_domain = [load_domain(name, split, **source.model_dump()) for split in SPLITS]
        check_leaks(of_domain)
        for domain in of_domain:
            splits[domain.split].append(domain)
    for name, source in config.test_only_domains.items():
        splits["test"].append(load_domain(name, "test", **source.model_dump()))
    return splits["train"], splits["validation"], splits["test"]


def caption_encoder(backbone: str) -> Callable[[list[str]], torch.Tensor]:
    """Function from captions to the token ids of template P3's two sentences, shape `(B, 2, length)`."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)

    def encode(captions: list[str]) -> torch.Tensor:
        texts = [template.format(caption=caption) for caption in captions for template in PROMPT_TEMPLATES["P3"]]
        ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
        return ids.unflatten(0, (len(captions), 2))

    return encode


def make_episode(
    batch: dict, num_domains: int, encode_captions: Callable | None, generator: torch.Generator
) -> Episode:
    """Turn a batch into an episode, half of its images mirrored at random (the paper's only augmentation)."""
    if "labels" not in batch or len(batch["domain_ids"].unique()) < num_domains:
        reasons = "; ".join(item.reason for item in batch["skipped"][:3])
        raise DomainError(f"A whole batch of one domain could not be read: {reasons}")
    flip = torch.rand(len(batch["labels"]), generator=generator) < 0.5
    pixel_values = torch.where(flip[:, None, None, None], batch["pixel_values"].flip(-1), batch["pixel_values"])
    return Episode(
        pixel_values,
        batch["labels"],
        batch["domain_ids"],
        num_source=int((batch["domain_ids"] != batch["domain_ids"][-1]).sum()),
        prompt_ids=None if encode_captions is None else encode_captions(batch["captions"]),
    )


def meta_step(
    model: GMDFModel,
    episode: Episode,
    config: TrainConfig,
    image_tokenizer: torch.nn.Module | None,
    generator: torch.Generator,
    accelerator: Accelerator,
) -> dict[str, torch.Tensor]:
    """One meta-iteration: updates theta_E on the meta-train domains, leaves theta_O's gradient on the meta-test one."""
    with accelerator.autocast():
        source_loss, source_embeds = inner_loss(model, episode)
    domains = len(episode.source_domains)
    update_experts(model, source_loss, config.inner_learning_rate, config.source_weight / domains)
    with accelerator.autocast():
        if config.align_gradient == "both":
            source_embeds = inner_loss(model, episode)[1]
        losses = outer_losses(
            model,
            episode,
            source_embeds if config.align_gradient == "both" else source_embeds.detach(),
            image_tokenizer,
            generator,
            align=config.alignment_weight > 0,
            all_experts=config.outer_experts == "all",
        )
        weights = {"classification": 1.0, "alignment": config.alignment_weight, "masked_image": config.mim_weight}
        total = sum(weights[name] * loss for name, loss in losses.items())
    accelerator.backward(total, inputs=list(model.shared_parameters().values()))
    return {"source": source_loss.detach() / domains} | {name: loss.detach() for name, loss in losses.items()}


def merged_step(model: GMDFModel, episode: Episode, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """One step of plain fine-tuning on the merged domains: the experts stay at zero effect, so the model is CLIP."""
    with accelerator.autocast():
        output = model(episode.pixel_values, prompt_ids=episode.prompt_ids)
        loss = classification_loss(output.logits, episode.labels, torch.zeros_like(episode.labels))
    accelerator.backward(loss)
    return {"classification": loss.detach()}


def training_crops(sampler: EpisodeSampler, loader: DataLoader, first_epoch: int) -> Iterator[torch.Tensor]:
    """Endless batches of the training crops, in the order of epochs that training itself does not use."""
    for epoch in itertools.count(first_epoch):
        sampler.set_epoch(epoch)
        for batch in loader:
            if "pixel_values" in batch:
                yield batch["pixel_values"]


def score_all(
    model: GMDFModel, domains: list[Domain], processor: GMDFImageProcessor, config: TrainConfig, encode_captions
) -> tuple[pd.DataFrame, list]:
    """Scores of several domains in one table, and the frames that could not be read."""
    parts = [
        score_domain(model, domain, processor, 2 * config.batch_size, config.num_workers, encode_captions)
        for domain in domains
    ]
    return pd.concat([table for table, _ in parts], ignore_index=True), [item for _, part in parts for item in part]


if __name__ == "__main__":
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        arguments = parse_command_line(None, __doc__, DEFAULT_RECIPE)
        print_results(main(arguments))
        print(f"model: {arguments.output_dir / 'model'}")
    except (UserError, DomainError) as error:
        sys.exit(f"meta_train.py: {error}")
