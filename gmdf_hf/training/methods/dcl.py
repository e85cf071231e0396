"""`dcl`: dual contrastive learning (DCL, Sun et al. 2022), between images and within them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, normalize

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.processes import num_processes, process_index, sum_over_processes
from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.training.classifiers import features_of, head_map
from gmdf_hf.training.methods.merged import Merged, backward, merged_losses
from gmdf_hf.training.methods.method import Losses

TEMPERATURE, MOMENTUM, PROTOTYPE = 0.07, 0.999, 0.9
HARD, QUEUE = 5, 1024  # hard keys of each class kept of a batch and process, and in all
INTRA, OF_REALS = 0.1, 0.01  # weights of the loss within images, and of real images in it
GRID = 3  # patches a side that a view shuffles


def inter_instance(
    queries: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor, queues: torch.Tensor, filled: torch.Tensor
) -> torch.Tensor:
    """``-log(exp(q k / t) / (exp(q k / t) + sum_n exp(q n / t)))`` with hard keys n of the other class, shape `(B,)`.

    Args:
        queries: Features q of one view of each image, of unit length, shape `(B, D)`.
        keys: Features k of another view, by the slow encoder, shape `(B, D)`.
        labels: 0 real, 1 fake, shape `(B,)`.
        queues: Hard keys of reals and of fakes, shape `(2, Q, D)`.
        filled: Number of keys in each queue, shape `(2,)`.
    """
    positive = (queries * keys).sum(1, keepdim=True)
    negatives = torch.einsum("bd,cqd->bcq", queries, queues)
    absent = torch.arange(queues.shape[1], device=filled.device) >= filled[:, None]
    negatives = negatives.masked_fill(absent, -torch.inf)[torch.arange(len(labels)), 1 - labels]
    logits = torch.cat([positive, negatives], 1) / TEMPERATURE
    return logits.logsumexp(1) - logits[:, 0]


def intra_instance(local: torch.Tensor, labels: torch.Tensor, forged: torch.Tensor) -> torch.Tensor:
    """Contrast of places in one image, shape `(B,)`; 0 for a fake without a known forged and a genuine part.

    With S the sums of ``exp(x y / t)`` over pairs of genuine places (rr) and of a forged and a genuine place (fr), a
    fake has ``-log(S_rr / (S_rr + S_fr))``, and a real ``1 / t - log s_rr`` with the mean s_rr over its pairs.

    Args:
        local: Features of unit length, shape `(B, places, D)`.
        labels: 0 real, 1 fake, shape `(B,)`.
        forged: Share of each place that was forged, below 0 if unknown, shape `(B, places)`.
    """
    powers = torch.exp(torch.einsum("bid,bjd->bij", local, local) / TEMPERATURE)
    genuine, changed = (forged == 0).to(powers), (forged > 0.01).to(powers)
    within = torch.einsum("bi,bij,bj->b", genuine, powers, genuine)
    across = torch.einsum("bi,bij,bj->b", changed, powers, genuine)
    known = (labels == 1) & genuine.any(1) & changed.any(1)
    of_fakes = ((within + across).clamp(min=1e-12) / within.clamp(min=1e-12)).log()
    of_reals = 1 / TEMPERATURE - powers.mean((1, 2)).log()
    return torch.where(labels == 0, OF_REALS * of_reals, of_fakes * known)


def view(images: torch.Tensor, forged: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Another view of images `(B, 3, H, W)` and of what was forged in them `(B, H, W)`.

    Each with probability 1/2 is mirrored, has patches of a grid shuffled, and high frequencies enhanced.
    """
    pictures = []
    for image, mask in zip(images, forged, strict=True):
        mirrored, shuffled, enhanced = (torch.rand(3) < 0.5).tolist()
        if enhanced:
            image = 2 * image - avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
        both = torch.cat([image, mask[None]])
        if mirrored:
            both = both.flip(-1)
        if shuffled:
            side = both.shape[-1] // GRID
            inner = both[:, : GRID * side, : GRID * side].unflatten(1, (GRID, side)).unflatten(3, (GRID, side))
            patches = inner.movedim(3, 2).flatten(1, 2)[:, torch.randperm(GRID**2)]
            both = both.clone()
            both[:, : GRID * side, : GRID * side] = (
                patches.unflatten(1, (GRID, GRID)).movedim(3, 2).flatten(3, 4).flatten(1, 2)
            )
        pictures.append(both)
    stacked = torch.stack(pictures)
    return stacked[:, :3], stacked[:, 3]


class DCL(Merged):
    """DCL: ``L = L_ce + L_inter + 0.1 L_intra`` on two views of each image.

    A slow copy of the model encodes the second view: ``theta_k = 0.999 theta_k + 0.001 theta_q``. Hard keys are those
    of a batch that are most like the other class's prototype, a moving mean of its keys. L_intra uses the last hidden
    states as places and the column `mask`; without masks it is that of the reals.

    Ours: features are compared without the paper's further projection, the queue holds 1024 keys of each class, and
    views are made without a second frame and without landmarks. The constants are those of the released code.

    Args:
        shares: Weight of each domain's mean loss, shape `(domains,)`.
    """

    needs_masks = True

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """Copy the model."""
        parameters = super().prepare(model)
        self.keys = deepcopy(model).requires_grad_(False)
        self.trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        size = model.config.projection_dim if isinstance(model, GMDFModel) else head_map(model).in_features
        device = parameters[0].device
        self.queues = torch.zeros(2, QUEUE, size, device=device)
        self.filled = torch.zeros(2, dtype=torch.long, device=device)
        self.enqueued = torch.zeros(2, dtype=torch.long, device=device)
        self.prototypes = torch.zeros(2, size, device=device)
        return parameters

    def step(self, model: nn.Module, episode: Episode, accelerator: Accelerator) -> Losses:
        """Cross-entropy of the first view, and the two contrasts.

        Raises:
            UserError: If the model has no hidden states.
        """
        unknown = torch.full_like(episode.pixel_values[:, 0], -1.0) * episode.labels[:, None, None]
        forged = unknown if episode.forged is None else episode.forged
        first, first_forged = view(episode.pixel_values, forged)
        second, _ = view(episode.pixel_values, forged)
        self.move_keys(model)
        prompts = {} if episode.prompt_ids is None else {"prompt_ids": episode.prompt_ids}
        with accelerator.autocast():
            with features_of(model) as queries:
                episode_of_view = replace(episode, pixel_values=first, forged=first_forged)
                losses, output = merged_losses(model, episode_of_view, self.shares, output_hidden_states=True)
            with torch.no_grad(), features_of(self.keys) as keys:
                self.keys.train(model.training)(pixel_values=second, **prompts)
        if not getattr(output, "hidden_states", None):
            raise UserError(f"dcl compares places of an image, and {type(model).__name__} gives no hidden states.")
        q, k = (normalize(each[0].flatten(1).float(), dim=-1) for each in (queries, keys))
        self.enqueue(k, episode.labels)
        local, places = places_of(output.hidden_states[-1], first_forged)
        weights = episode.weights / len(episode.domains)
        inter = inter_instance(q, k, episode.labels, self.queues, self.filled)
        losses["inter"] = (inter * weights).sum()
        losses["intra"] = INTRA * (intra_instance(local, episode.labels, places) * weights).sum()
        return backward(losses, accelerator)

    @torch.no_grad()
    def move_keys(self, model: nn.Module) -> None:
        """Move the slow copy towards the model."""
        for name in self.trained:
            self.keys.get_parameter(name).lerp_(model.get_parameter(name), 1 - MOMENTUM)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor, labels: torch.Tensor) -> None:
        """Move the prototypes, and add the hard keys of all processes to the queues."""
        for label in (0, 1):
            own = keys[labels == label]
            total, count = sum_over_processes([own.sum(0), own.new_tensor(float(len(own)))])
            if count > 0:
                mean = total / count
                started = bool(self.prototypes[label].any())
                self.prototypes[label] = torch.lerp(mean, self.prototypes[label], PROTOTYPE) if started else mean
        for label in (0, 1):
            own = keys[labels == label]
            order = (own @ self.prototypes[1 - label]).argsort(descending=True)
            slots = keys.new_zeros(num_processes(), HARD, keys.shape[1])
            hard = own[order[:HARD]]
            slots[process_index(), : len(hard)] = hard
            found = sum_over_processes([slots])[0].flatten(0, 1)
            found = found[found.any(1)]
            where = (self.enqueued[label] + torch.arange(len(found), device=found.device)) % QUEUE
            self.queues[label, where] = found
            self.enqueued[label] += len(found)
            self.filled[label] = self.enqueued[label].clamp(max=QUEUE)

    def state(self) -> Mapping[str, torch.Tensor]:
        """Slow copy, queues and prototypes."""
        own = {name: getattr(self, name) for name in ("queues", "filled", "enqueued", "prototypes")}
        return own | {f"keys.{name}": self.keys.get_parameter(name).data for name in self.trained}


def places_of(hidden: torch.Tensor, forged: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Local features of unit length `(B, places, D)`, and the share of each place that was forged `(B, places)`.

    Args:
        hidden: Feature maps `(B, D, h, w)`, or tokens `(B, T, D)` whose last ones are those of a square of patches.
        forged: Share of each pixel that was forged, -1 if unknown, shape `(B, H, W)`.
    """
    if hidden.ndim == 4:
        grid, local = hidden.shape[2:], hidden.flatten(2).transpose(1, 2)
    else:
        side = int(hidden.shape[1] ** 0.5)
        grid, local = torch.Size((side, side)), hidden[:, -(side**2) :]
    return normalize(local.float(), dim=-1), adaptive_avg_pool2d(forged[:, None], (grid[0], grid[1])).flatten(1)
