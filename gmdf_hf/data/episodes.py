"""Episodes: selection of frames and held-out domain, a pure function of seed and epoch (D14), and their tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from gmdf_hf.common.errors import DomainError
from gmdf_hf.common.processes import gather_counts, process_index
from gmdf_hf.common.random_numbers import random_numbers
from gmdf_hf.data.frames import Draw
from gmdf_hf.data.patches import draw_mask
from gmdf_hf.modeling import GMDFConfig


def held_out_domains(domains: int, seed: Sequence[int]) -> Iterator[int]:
    """Yield the meta-test domain of each iteration, endlessly: in random order, each once in N iterations."""
    rng = random_numbers("meta-test domain", *seed)
    while True:
        yield from rng.permutation(domains).tolist()


def balanced_batches(
    labels: np.ndarray,
    videos: Sequence[Hashable],
    batch_size: int,
    seed: Sequence[int],
    groups: Sequence[str] | None = None,
) -> list[list[int]]:
    """Return the row numbers of one epoch's batches of one domain.

    Every batch holds real and fake in equal number. An epoch takes one random frame from every video of the larger
    class; the smaller class is repeated.

    Args:
        labels: 0 real, 1 fake, shape `(frames,)`.
        videos: Video of each frame.
        batch_size: Even number of frames in a batch.
        seed: Numbers that fix the order.
        groups: Group of each frame, for pairs: the k-th fake of a batch is a random fake frame of the group of its k-th
            real; a real whose group has no fake keeps the fake in the usual order.

    Raises:
        ValueError: If `batch_size` is odd or a class is missing.
    """
    if batch_size < 2 or batch_size % 2:
        raise ValueError(f"`batch_size` must be even and at least 2, found {batch_size}.")
    rng = random_numbers("order of frames", *seed)
    rows_of: tuple[dict[Hashable, list[int]], ...] = ({}, {})
    for row, (label, video) in enumerate(zip(labels.tolist(), videos, strict=True)):
        rows_of[label].setdefault(video, []).append(row)
    if not all(rows_of):
        raise ValueError("A batch needs real and fake frames, found one class alone.")
    half = batch_size // 2
    batches = math.ceil(max(len(of_class) for of_class in rows_of) / half)
    rows = []
    for of_class in rows_of:
        frames = list(of_class.values())
        visits = math.ceil(batches * half / len(frames))
        order = np.concatenate([rng.permutation(len(frames)) for _ in range(visits)])[: batches * half]
        rows.append([frames[video][rng.integers(len(frames[video]))] for video in order])
    real, fake = rows
    if groups is not None:
        fake = _partners(labels, groups, real, fake, seed)
    return [real[i : i + half] + fake[i : i + half] for i in range(0, batches * half, half)]


def _partners(
    labels: np.ndarray, groups: Sequence[str], real: Sequence[int], fake: Sequence[int], seed: Sequence[int]
) -> list[int]:
    """A random fake frame of each real's group; the given one if the group has none."""
    rng = random_numbers("pairs", *seed)
    fakes_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(labels).tolist():
        fakes_of.setdefault(groups[row], []).append(row)
    chosen = []
    for of_real, usual in zip(real, fake, strict=True):
        known = fakes_of.get(groups[of_real])
        chosen.append(known[rng.integers(len(known))] if known else usual)
    return chosen


class EpisodeSampler(Sampler):
    """Meta-iterations: a batch of every domain, the meta-test domain's last (Algorithm 1).

    The meta-test domain is drawn at random, each domain once in N iterations. An epoch ends with the domain with the
    most batches; the other domains restart in a new order. With a single domain, episodes are ordinary batches, for
    methods without a held-out domain.

    All processes draw the same joined batches and take their parts of them. Together they see the same data as one
    process with larger batches, and all have the same number of iterations (decisions D14, D15).

    Args:
        labels: Labels of each domain's frames.
        videos: Videos of each domain's frames.
        batch_size: Frames of each domain in an iteration of one process.
        seed: Seed of the order.
        process_index: Index of this process.
        num_processes: Number of processes.
        length: Number of iterations in an epoch; None for the largest domain's number of batches.
        groups: Groups of each domain's frames, for batches of pairs; None for batches without.
        self_blended: Whether the k-th fake of a batch is the self-blended image of its k-th real.

    Raises:
        ValueError: If there is no domain.
    """

    def __init__(
        self,
        labels: Sequence[np.ndarray],
        videos: Sequence[Sequence[Hashable]],
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        length: int | None = None,
        groups: Sequence[Sequence[str]] | None = None,
        self_blended: bool = False,
    ):
        if not labels:
            raise ValueError("An episode needs a domain, found none.")
        self.labels, self.videos, self.groups, self.self_blended = labels, videos, groups, self_blended
        self.joined_size, self.seed = batch_size * num_processes, seed
        half = batch_size // 2
        places = np.arange(process_index * half, (process_index + 1) * half)
        self._places = np.concatenate([places, places + self.joined_size // 2]).tolist()  # real, fake
        self.set_epoch(0)
        self._length = length or max(len(self._batches(domain, 0)) for domain in range(len(labels)))

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch, and the number of episodes to skip, for the next iteration over the sampler."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[Draw]]:
        domains = len(self.labels)
        rng = random_numbers("mirroring and masks", self.seed, self.epoch)
        streams = [self._endless(domain) for domain in range(domains)]
        meta_tests = held_out_domains(domains, (self.seed, self.epoch))
        for number, meta_test in zip(range(len(self)), meta_tests, strict=False):
            chances = rng.integers(2**62, size=(domains, self.joined_size))
            batches = [next(stream) for stream in streams]
            if number < self.start:
                continue
            order = [domain for domain in range(domains) if domain != meta_test] + [meta_test]
            yield [
                self._draw(domain, batches[domain], place, int(chances[domain, place]))
                for domain in order
                for place in self._places
            ]

    def _draw(self, domain: int, batch: Sequence[int], place: int, chance: int) -> Draw:
        """The frame at a place of a batch, whose second half is the fakes."""
        half = self.joined_size // 2
        blended = self.self_blended and place >= half
        return Draw(domain, batch[place - half if blended else place], chance, blended)

    def _batches(self, domain: int, visit: int) -> list[list[int]]:
        seed = (self.seed, self.epoch, domain, visit)
        groups = None if self.groups is None else self.groups[domain]
        return balanced_batches(self.labels[domain], self.videos[domain], self.joined_size, seed, groups)

    def _endless(self, domain: int) -> Iterator[list[int]]:
        visit = 0
        while True:
            yield from self._batches(domain, visit)
            visit += 1


@dataclass(frozen=True)
class Episode:
    """A batch of every domain, ordered by domain, the meta-test domain last.

    Values that the CPU needs stay on the CPU: reading them back from a GPU would stall the GPU.

    Attributes:
        pixel_values: Images of shape `(B, 3, H, W)`.
        labels: 0 real, 1 fake, shape `(B,)`.
        domain_ids: Domain of each image, shape `(B,)`.
        domains: Domains in the order of their images.
        counts: Number of images per process and domain, in the order of `domains`.
        weights: Reciprocal of the number of images of each image's domain in all processes, shape `(B,)`.
        mask: Patches of the meta-test images that L_mim masks, shape `(m, patches)`, on the CPU; None without L_mim.
        prompt_ids: Class sentences of each image, shape `(B, 2, length)`, for template P3; None otherwise.
        forged: Share of each pixel that was forged, -1 if unknown, shape `(B, H, W)`; None if the model needs it not.
    """

    pixel_values: torch.Tensor
    labels: torch.Tensor
    domain_ids: torch.Tensor
    domains: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    weights: torch.Tensor
    mask: torch.Tensor | None = None
    prompt_ids: torch.Tensor | None = None
    forged: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        prompt_ids: torch.Tensor | None = None,
        device: torch.device | str = "cpu",
        forged: torch.Tensor | None = None,
    ) -> Episode:
        """Make an episode from a batch on the CPU, and move its images to a device.

        Every process must call this at the same iteration, because the processes exchange their image counts.
        """
        domains, ours = domain_ids.unique_consecutive(return_counts=True)
        counts = gather_counts(ours.tolist(), torch.device(device))
        everyones = torch.tensor(counts).sum(0)
        weights = (1 / everyones).to(pixel_values.dtype).repeat_interleave(ours)
        places = tuple(domains.tolist()), counts
        episode = cls(pixel_values, labels, domain_ids, *places, weights, mask, prompt_ids, forged)
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(cls)
            if field.name != "mask" and isinstance(value := getattr(episode, field.name), torch.Tensor)
        }
        return replace(episode, **moved)

    @property
    def source_domains(self) -> tuple[int, ...]:
        """The meta-train domains."""
        return self.domains[:-1]

    @property
    def source(self) -> slice:
        """Slice of the meta-train images."""
        return slice(sum(self.counts[process_index()][:-1]))

    @property
    def target(self) -> slice:
        """Slice of the meta-test images."""
        return slice(self.source.stop, None)


def episode_of_batch(
    batch: dict,
    num_domains: int,
    config: GMDFConfig,
    hide_patches: bool,
    encode_captions: Callable[[list[str]], torch.Tensor] | None,
    device: torch.device,
) -> Episode:
    """Turn a batch of the loader into an episode.

    Args:
        batch: Output of `collate`.
        num_domains: Number of domains of which the batch must have images.
        config: The detector's configuration.
        hide_patches: Whether L_mim masks patches of the meta-test images.
        encode_captions: Function from captions to class sentences `(B, 2, length)`, for template P3.
        device: Device of the images.

    Raises:
        DomainError: If no image of a domain could be read.
    """
    if "labels" not in batch or len(batch["domain_ids"].unique()) < num_domains:
        reasons = "; ".join(item.reason for item in batch["skipped"][:3])
        raise DomainError(f"A whole batch of one domain could not be read: {reasons}")
    domain_ids, mask, prompt_ids = batch["domain_ids"], None, None
    if hide_patches:
        meta_test = (domain_ids == domain_ids[-1]).tolist()
        mask = hidden_patches(list(itertools.compress(batch["chances"], meta_test)), config)
    if encode_captions is not None:
        prompt_ids = encode_captions(batch["captions"])
    return Episode.of(batch["pixel_values"], batch["labels"], domain_ids, mask, prompt_ids, device, batch.get("forged"))


def hidden_patches(chances: Sequence[int], config: GMDFConfig) -> torch.Tensor:
    """Patches that L_mim masks: a function of each image's random number, independent of the process.

    Args:
        chances: Random number of each image.
        config: The detector's configuration.

    Returns:
        True for masked patches, shape `(len(chances), patches)`.
    """
    assert config.patch_size is not None  # the set-up of the visual codes rejects a backbone without patches
    grid = config.image_size // config.patch_size
    generators = [torch.Generator().manual_seed(chance) for chance in chances]
    return torch.cat([draw_mask(1, grid, config.mask_ratio, config.mask_strategy, each) for each in generators])
