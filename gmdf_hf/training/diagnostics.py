"""Diagnostics: failed iterations, expert usage, training curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from gmdf_hf.common.files import write_json
from gmdf_hf.common.processes import process_index
from gmdf_hf.data.episodes import Episode
from gmdf_hf.data.frames import FrameReader, collate
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.modeling.experts_gmdf import DomainExperts

PARTS: tuple[Literal["experts", "text"], ...] = ("experts", "text")  # of theta_E
EFFECT_GOAL = 0.1  # smallest expert effect at which expert ablations are meaningful (decision D17)


@torch.no_grad()
def restore(tensors: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> None:
    """Restore the values from before a failed iteration."""
    for tensor, value in zip(tensors, before, strict=True):
        tensor.copy_(value)


@torch.no_grad()
def broken_images(model: torch.nn.Module, episode: Episode, names: Sequence[str]) -> list[str]:
    """Images of an episode with non-finite pixels or a non-finite loss.

    Args:
        model: The detector, restored to its state before the iteration; left in evaluation mode.
        episode: Images of all domains.
        names: Name of each image.
    """
    finite = episode.pixel_values.isfinite().flatten(1).all(1)
    if finite.all():
        ours = isinstance(model, GMDFModel)
        route = {"domain_ids": episode.domain_ids, "prompt_ids": episode.prompt_ids} if ours else {}
        # In training mode, batch normalisation would spread one image's non-finite values to all others.
        output = model.eval()(pixel_values=episode.pixel_values, **route)
        finite = cross_entropy(output.logits.float(), episode.labels, reduction="none").isfinite()
    return [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine]


def record_failure(
    path: Path, model: PreTrainedModel, episode: Episode, names: Sequence[str], step: int, values: Mapping[str, float]
) -> str:
    """Record an iteration with a non-finite loss or gradient; called by all processes.

    Args:
        path: JSON file to write.
        model: The detector, restored to its state before the iteration.
        episode: Images of all domains.
        names: Name of each image.
        step: Number of the iteration.
        values: Its losses and gradient norm.

    Returns:
        Error message that names the affected images.
    """
    broken, images = gather_object(broken_images(model, episode, names)), gather_object(list(names))
    record = {
        "step": step,
        "values": {name: str(value) for name, value in values.items()},
        "domains": [model.config.domains[domain] for domain in episode.domains],
        "broken": broken,
        "images": images,
    }
    if process_index() == 0:
        write_json(path, record)
    found = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
    which = f"Pixels or loss of {'; '.join(broken[:3])} are not finite." if broken else "No single image explains it."
    return (
        f"Iteration {step} gave {found}. {which} What was learned before it is saved, and the whole episode is in "
        f"{path}. Leave the image out or lower the step sizes, then go on with --resume true."
    )


@torch.no_grad()
def expert_state(model: GMDFModel, frames: FrameReader, images: int = 32) -> dict[str, Any]:
    """Gains, DIL change, usage and effect of the experts.

    Args:
        model: The detector.
        frames: Validation images of its domains, from which evenly spaced ones are taken.
        images: Number of images per domain.

    Returns:
        `alpha`: gain of every domain's expert in every block (Eq. 2); 0 means no effect. `dil_change`: mean absolute
        deviation of the Dataset Information Layers' gains from 1 (`affine` variants). `expert_use`: each expert's share
        of the experts' output on the images of a domain, over all blocks. `expert_effect`: see `effects`.
    """
    use, batches = {}, []
    for number, domain in enumerate(frames.domains):
        rows = torch.linspace(0, len(domain) - 1, min(images, len(domain))).long().unique().tolist()
        batch = collate([frames[number, row] for row in rows])
        if "pixel_values" in batch:
            pixel_values = batch["pixel_values"].to(model.device)
            output = model(pixel_values, output_expert_weights=True)
            shares = torch.stack(output.expert_weights).float().mean((0, 1))
            use[domain.name] = dict(zip(model.config.domains, shares.tolist(), strict=True))
            batches.append((pixel_values, torch.full((len(pixel_values),), number, device=model.device)))
    layers = expert_layers(model)
    alphas = torch.stack([experts.alpha for experts in layers]).T
    state: dict[str, Any] = {"alpha": dict(zip(model.config.domains, alphas.tolist(), strict=True))}
    if model.config.dil != "cross_attention":
        changes = [experts.dil.gains(model.domain_prompts).sub(1).abs().mean() for experts in layers]
        state["dil_change"] = float(torch.stack(changes).mean())
    return state | {"expert_use": use, "expert_effect": effects(model, batches)}


def expert_layers(model: GMDFModel) -> list[DomainExperts]:
    """The experts of every block or stage, in order."""
    return [module for module in model.modules() if isinstance(module, DomainExperts)]


def effects(
    model: GMDFModel, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> dict[Literal["experts", "text"], dict[str, float]]:
    """Effect of the two parts of theta_E on the decision (decision D17).

    With the margin ``logit(fake) - logit(real)``: the standard deviation over images of the margin's change when the
    part is set to zero effect, divided by the standard deviation of the margin.

    Args:
        model: The detector.
        batches: Images `(B, 3, H, W)` and their domains `(B,)`.

    Returns:
        For all vision `experts` and for the `text` affine: `known`, on the route of the images' own domain, and
        `unknown`, on the aggregated route.
    """
    whole = {known: margins(model, batches, known) for known in (True, False)}
    found: dict[Literal["experts", "text"], dict[str, float]] = {}
    for part in PARTS:
        with silenced(model, part):
            changes = {known: whole[known] - margins(model, batches, known) for known in whole}
        found[part] = {
            "known" if known else "unknown": float(change.std() / whole[known].std())
            for known, change in changes.items()
        }
    return found


def margins(model: GMDFModel, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], known: bool) -> torch.Tensor:
    """Margins of all images, shape `(B,)`, on the route of their own domain or on the aggregated one."""
    routes = [{"domain_ids": domain_ids} if known else {} for _, domain_ids in batches]
    logits = torch.cat([model(batch[0], **route).logits for batch, route in zip(batches, routes, strict=True)])
    return logits[:, 1] - logits[:, 0]


@contextmanager
def silenced(model: GMDFModel, part: Literal["experts", "text"]) -> Iterator[None]:
    """Set all vision experts, or the text affine, to zero effect."""
    if part == "experts":
        tensors = [experts.alpha for experts in expert_layers(model)]
    else:
        tensors = list(model.text_affine.parameters())
    before = [tensor.detach().clone() for tensor in tensors]
    with torch.no_grad():
        for tensor in tensors:
            tensor.zero_()
    try:
        yield
    finally:
        restore(tensors, before)


def idle_warning(effect: Mapping[str, Mapping[str, float]]) -> str | None:
    """Warning if the experts have little effect; None otherwise."""
    found = effect["experts"]
    if min(found.values()) >= EFFECT_GOAL:
        return None
    return (
        f"The experts are nearly idle: they make {100 * found['known']:.1f} % of the margin's spread on an image's own "
        f"route and {100 * found['unknown']:.1f} % on that of unknown domains; below {100 * EFFECT_GOAL:.0f} % a "
        "comparison of expert variants says nothing. Raise inner_learning_rate or train longer."
    )


def plot_history(history: Path, picture: Path) -> None:
    """Plot the curves of a run: losses, gradient norm, validation AUC and the experts' mean gain.

    Args:
        history: The run's `history.jsonl`.
        picture: PNG file to write.
    """
    records = [json.loads(line) for line in history.read_text().splitlines()]
    steps = [record for record in records if "gradient_norm" in record]
    epochs = [record for record in records if "validation_auc" in record]
    figure = Figure(figsize=(10, 7), layout="constrained")
    (losses, norm), (auc, gain) = figure.subplots(2, 2)
    for name in ("source", "classification", "alignment", "masked_image"):
        if any(name in record for record in steps):
            losses.plot(*_curve(steps, name), label=name.replace("_", " "))
    losses.set(title="losses", yscale="log")
    losses.legend()
    norm.plot(*_curve(steps, "gradient_norm"))
    norm.set(title="gradient norm of the shared parameters", yscale="log")
    auc.plot(*_curve(epochs, "validation_auc"), marker="o", markersize=3)
    auc.set(title="mean validation AUC of the source domains")
    domains = list(epochs[0].get("alpha", {})) if epochs else []
    for domain in domains:
        values = [sum(map(abs, record["alpha"][domain])) / len(record["alpha"][domain]) for record in epochs]
        gain.plot([record["step"] for record in epochs], values, marker="o", markersize=3, label=domain)
    gain.set(title="mean |alpha| of each domain's expert")
    if domains:
        gain.legend()
    for axes in (losses, norm, auc, gain):
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)


def _curve(records: list[dict], name: str) -> tuple[list[int], list[float]]:
    having = [record for record in records if name in record]
    return [record["step"] for record in having], [record[name] for record in having]
