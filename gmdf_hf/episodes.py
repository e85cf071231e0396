"""Which frames make a batch and which domain is held out: a pure function of seed and epoch (decision D14)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


def balanced_batches(
    labels: np.ndarray, video_ids: Sequence[str], batch_size: int, seed: Sequence[int]
) -> list[list[int]]:
    """Rows of one epoch's batches of one domain.

    Every batch holds real and fake in equal number. The epoch is over when every video of the larger class was visited,
    each visit taking one frame at random; the smaller class is repeated.

    Args:
        labels: 0 real, 1 fake, shape `(frames,)`.
        video_ids: Video of each frame.
        batch_size: Even number of frames in a batch.
        seed: Numbers that fix the order.

    Raises:
        ValueError: If `batch_size` is odd or a class is missing.
    """
    if batch_size < 2 or batch_size % 2:
        raise ValueError(f"`batch_size` must be even and at least 2, found {batch_size}.")
    rng = np.random.default_rng(seed)
    videos: tuple[dict[str, list[int]], ...] = ({}, {})
    for row, (label, video) in enumerate(zip(labels.tolist(), video_ids, strict=True)):
        videos[label].setdefault(video, []).append(row)
    if not all(videos):
        raise ValueError("A batch needs real and fake frames, found one class alone.")
    half = batch_size // 2
    batches = math.ceil(max(len(of_class) for of_class in videos) / half)
    rows = []
    for of_class in videos:
        frames = list(of_class.values())
        visits = math.ceil(batches * half / len(frames))
        order = np.concatenate([rng.permutation(len(frames)) for _ in range(visits)])[: batches * half]
        rows.append([frames[video][rng.integers(len(frames[video]))] for video in order])
    real, fake = rows
    return [real[i : i + half] + fake[i : i + half] for i in range(0, batches * half, half)]


class EpisodeSampler(Sampler):
    """Meta-iterations: a batch of every domain, the meta-test domain's last (Algorithm 1).

    The meta-test domain is drawn at random, each domain once in N iterations. An epoch is over when the domain with the
    most batches is; the others start again, in a new order.

    Args:
        labels: Labels of each domain's frames.
        video_ids: Videos of each domain's frames.
        batch_size: Frames of each domain in an iteration.
        seed: Of the order.

    Raises:
        ValueError: If there are fewer than two domains.
    """

    def __init__(self, labels: Sequence[np.ndarray], video_ids: Sequence[Sequence[str]], batch_size: int, seed: int):
        if len(labels) < 2:
            raise ValueError(f"An episode needs at least two domains, found {len(labels)}.")
        self.labels, self.video_ids = labels, video_ids
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self._length = max(len(self._batches(domain, 0)) for domain in range(len(labels)))

    def _batches(self, domain: int, visit: int) -> list[list[int]]:
        seed = (self.seed, self.epoch, domain, visit)
        return balanced_batches(self.labels[domain], self.video_ids[domain], self.batch_size, seed)

    def _endless(self, domain: int) -> Iterator[list[int]]:
        visit = 0
        while True:
            yield from self._batches(domain, visit)
            visit += 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration over the sampler has."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        domains = len(self.labels)
        rng = np.random.default_rng((self.seed, self.epoch, domains))
        streams = [self._endless(domain) for domain in range(domains)]
        held_out: list[int] = []
        for _ in range(len(self)):
            held_out = held_out or rng.permutation(domains).tolist()
            meta_test = held_out.pop()
            order = [domain for domain in range(domains) if domain != meta_test] + [meta_test]
            yield [(domain, row) for domain in order for row in next(streams[domain])]
