"""Loading of a run's domains and episodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.image_processing_utils import BaseImageProcessor

from gmdf_hf.common.processes import num_processes, process_index
from gmdf_hf.common.schema import SPLITS
from gmdf_hf.data.dataset import Domain, check_leaks, load_domain
from gmdf_hf.data.episodes import EpisodeSampler
from gmdf_hf.data.frames import FrameReader, collate
from gmdf_hf.data.streams import EpisodeStream, Stream, load_stream
from gmdf_hf.data.transforms import Transform


def load_domains(
    sources: Mapping[str, dict], unseen: Mapping[str, dict], streaming: bool
) -> tuple[list[Domain] | list[Stream], list[Domain], list[Domain]]:
    """Load the domains of a run.

    Args:
        sources: Arguments of `load_domain` by source domain.
        unseen: The same for domains used for testing only.
        streaming: Open the training splits as streams.

    Returns:
        Train and validation splits of the source domains, and the test splits of all domains, unseen domains last.

    Raises:
        DomainError: If a domain is unusable, or has a video or group in two splits.
    """
    splits: dict[str, list] = {split: [] for split in SPLITS}
    for name, fields in sources.items():
        of_domain = [load_domain(name, split, **fields) for split in (SPLITS[1:] if streaming else SPLITS)]
        check_leaks(of_domain)
        for domain in of_domain:
            splits[domain.split].append(domain)
        if streaming:
            splits["train"].append(load_stream(name, "train", **fields, others=of_domain))
    for name, fields in unseen.items():
        splits["test"].append(load_domain(name, "test", **fields))
    return splits["train"], splits["validation"], splits["test"]


def make_loader(
    train: Sequence[Domain] | Sequence[Stream],
    processor: BaseImageProcessor,
    batch_size: int,
    seed: int,
    length: int | None,
    num_workers: int = 0,
    pin_memory: bool = False,
    transforms: Sequence[Transform] = (),
    pairs: bool = False,
    self_blended: bool = False,
    masks: bool = False,
    blends: bool = False,
) -> tuple[EpisodeSampler | EpisodeStream, DataLoader]:
    """Return the loader of a run's episodes, and the object that sets its epoch.

    Args:
        train: Training splits of the source domains, either all streams or none.
        processor: Image processor of the model.
        batch_size: Frames of each domain in an iteration of one process.
        seed: Seed of the order.
        length: Number of iterations in an epoch; None for all videos of the largest domain (not available for streams).
        num_workers: Number of processes that decode images.
        pin_memory: Whether batches go to a GPU.
        transforms: Random transforms of the pictures.
        self_blended: Whether the fakes of a batch are self-blended images of its reals.
        pairs: Whether the fakes of a batch are of the groups of its reals (not available for streams).
        masks: Whether to read what was forged as well.
        blends: Whether blends of reals replace the fakes.
    """
    place = (process_index(), num_processes())
    streams, domains = [s for s in train if isinstance(s, Stream)], [d for d in train if isinstance(d, Domain)]
    sampler: EpisodeSampler | EpisodeStream
    arguments: dict[str, Any]
    if streams:
        if length is None:
            raise ValueError("Streams have no known length: state the iterations of an epoch (`steps_per_epoch`).")
        given: tuple[Any, ...] = (transforms, masks, self_blended, blends)
        sampler = EpisodeStream(streams, processor, batch_size, seed, length, *place, *given)
        num_workers = sampler.useful_workers(num_workers)
        arguments = {"dataset": sampler, "batch_size": None}
    else:
        labels, videos = [domain.labels for domain in domains], [domain.videos for domain in domains]
        groups = [domain.groups for domain in domains] if pairs else None
        sampler = EpisodeSampler(labels, videos, batch_size, seed, *place, length, groups, self_blended)
        arguments = {"dataset": FrameReader(domains, processor, transforms, masks, blends), "batch_sampler": sampler}
    loader = DataLoader(
        **arguments,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )
    return sampler, loader


def missing_masks(train: Sequence[Domain] | Sequence[Stream], blends: bool = False) -> str | None:
    """Note for a run whose model uses masks: the domains without the column `mask`; None if all have it.

    Args:
        train: Training splits of the source domains.
        blends: Whether blends of reals, whose masks are known, replace the fakes.
    """
    if blends:
        return "this detector trains on reals and on blends of reals: the fakes of the training splits are not used."
    lacking = [
        each.name
        for each in train
        if (each.masks is None if isinstance(each, Domain) else "mask" not in each.frames.column_names)
    ]
    if not lacking:
        return None
    return (
        f"no column `mask` in {', '.join(lacking)}: what the masks teach is left out for their fakes. `gmdf "
        "prepare` writes it for data sets with masks."
    )


def training_crops(
    sampler: EpisodeSampler | EpisodeStream, loader: DataLoader, first_epoch: int
) -> Iterator[torch.Tensor]:
    """Yield batches of the training crops endlessly, in the order of epochs that training does not use."""
    for epoch in itertools.count(first_epoch):
        sampler.set_epoch(epoch)
        for batch in loader:
            if "pixel_values" in batch:
                yield batch["pixel_values"]
