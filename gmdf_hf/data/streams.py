"""Streamed domains: no download, listing or counting before training or scoring begins.

A stream has no index, so videos cannot be sampled as in `EpisodeSampler`. Instead, a few random frames are taken from
each sequence of frames of one video, and real and fake frames pass through separate shuffle buffers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from transformers.image_processing_utils import BaseImageProcessor

from gmdf_hf.common.errors import DomainError
from gmdf_hf.common.images import ImageError
from gmdf_hf.common.labels import CLASS_NAMES, LabelReader
from gmdf_hf.common.random_numbers import random_numbers
from gmdf_hf.data.dataset import (
    Domain,
    label_reader,
    load_domain,
    load_frames,
    rename_columns,
    string,
)
from gmdf_hf.data.drawn.domains import DRAWN_PREFIX
from gmdf_hf.data.episodes import held_out_domains
from gmdf_hf.data.frames import Draw, Frame, Skipped, read_frame
from gmdf_hf.data.transforms import Transform

# A single frame per video, as in `EpisodeSampler`, would read 32 frames to use one. This limit bounds the reading and
# keeps longer videos from having a larger weight.
FRAMES_OF_A_VIDEO = 8
BUFFER_SIZE = 512  # encoded frames per class and domain, from 64 videos or more: some tens of megabytes


@dataclass(frozen=True)
class Stream:
    """One split of a domain, for sequential reading, once or repeatedly.

    Attributes:
        name: Name of the domain.
        split: train, validation or test.
        frames: Rows with renamed columns, images not decoded.
        kept_apart: Videos and groups of the other splits; a frame from one of them is a leak.
        labels: Reads the column `label`.
    """

    name: str
    split: str
    frames: datasets.IterableDataset
    kept_apart: frozenset[tuple[str, str]]
    labels: LabelReader

    def read(self, rows: Iterable[dict]) -> Iterator[Frame]:
        """Convert rows to frames; missing columns are filled as in `load_domain`.

        Args:
            rows: All or some of `frames`. Without a column `frame`, their numbers are 0.

        Raises:
            DomainError: If the class of a label is unknown, or a video or group belongs to another split.
        """
        for number, row in enumerate(rows):
            label = self.labels(row["label"])
            group = string(row["group"]) if "group" in row else f"{self.name}/{self.split}/{number}"
            video = string(row["video_id"]) if "video_id" in row else f"{group}/{CLASS_NAMES[label]}"
            for kind, value in (("video", video), ("group", group)):
                if (kind, value) in self.kept_apart:
                    raise DomainError(
                        f"Domain {self.name!r}: {kind} {value!r} stands in the {self.split} split and in another; "
                        "expected one."
                    )
            yield Frame(
                domain=self.name,
                row=number,
                video_id=video,
                number=int(row.get("frame", 0)),
                method=string(row["method"]) if "method" in row else None,
                label=label,
                caption=string(row.get("caption")),
                image=row["image"],
                mask=row.get("mask"),
            )


def load_stream(
    name: str,
    split: str,
    path: str,
    subset: str | None = None,
    revision: str | None = None,
    columns: dict[str, str | None] | None = None,
    splits: dict[str, str] | None = None,
    max_videos: int | None = None,
    labels: dict[str, str] | None = None,
    others: Sequence[Domain] = (),
) -> Stream:
    """Open one split of a domain as a stream; the arguments are those of `load_domain`.

    Args:
        name: Name of the domain.
        split: train, validation or test.
        path: Hub id, local folder or Parquet file, or `drawn:<domain>`.
        subset: Configuration of a hub data set.
        revision: Commit, branch or tag of a hub data set.
        columns: Column name here to that of the data set.
        splits: Split name here to that of the data set.
        max_videos: Not supported for streams, except for drawn domains.
        labels: `real` or `fake` for the data set's class names.
        others: The domain's other splits; the stream must not contain a video or group of these.

    Raises:
        DomainError: If the split or a column is missing, or the class of a class name is unknown.
    """
    if path.startswith(DRAWN_PREFIX):
        domain = load_domain(name, split, path, max_videos=max_videos)
        rows = domain.frames.add_column("label", domain.labels).add_column("video_id", domain.video_ids)
        rows = rows.add_column("frame", domain.frame_numbers).add_column("method", domain.methods)
        frames = rows.add_column("caption", domain.captions).to_iterable_dataset(num_shards=8)
    elif max_videos is not None:
        raise DomainError(f"Domain {name!r}: `max_videos` needs the whole domain, which a stream does not have.")
    else:
        frames = load_frames(name, path, subset, revision, (splits or {}).get(split, split), streaming=True)
        if frames.features is None:
            raise DomainError(
                f"Domain {name!r}: the columns of {path!r} are unknown before it is read, so it cannot be streamed."
            )
        frames = rename_columns(name, frames, columns or {})
    apart = {("video", video) for other in others for video in other.video_ids}
    apart |= {("group", group) for other in others for group in other.groups}
    return Stream(name, split, frames, frozenset(apart), label_reader(name, frames, columns, labels))


def stream_frames(stream: Stream) -> Iterator[Frame]:
    """Yield all frames of a stream in order, numbered within their videos if the data set has no frame numbers."""
    columns = set(stream.frames.column_names)
    seen: Counter[tuple[str | None, str]] = Counter()
    for frame in stream.read(stream.frames):
        if "frame" not in columns and columns & {"video_id", "group"}:
            video = frame.method, frame.video_id
            seen[video] += 1
            frame = frame._replace(number=seen[video] - 1)
        yield frame


class EpisodeStream(torch.utils.data.IterableDataset):
    """Meta-iterations from streams: each has frames of every domain, the meta-test domain last.

    Every process and worker reads its own share of each stream; the meta-test domain is the same for all. Batches hold
    real and fake frames in equal number. Order is a function of seed, epoch, process and worker.

    Args:
        streams: The domains.
        processor: Image processor of the model.
        batch_size: Frames of each domain in an iteration of one process; even.
        seed: Seed of the order.
        length: Number of iterations in an epoch.
        process_index: Index of this process.
        num_processes: Number of processes.
        transforms: Random transforms of the pictures.
        masks: Whether to read what was forged as well.
        self_blended: Whether the k-th fake of a batch is the self-blended image of its k-th real.
        blends: Whether blends of two reals replace the fakes.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        processor: BaseImageProcessor,
        batch_size: int,
        seed: int,
        length: int,
        process_index: int = 0,
        num_processes: int = 1,
        transforms: Sequence[Transform] = (),
        masks: bool = False,
        self_blended: bool = False,
        blends: bool = False,
    ):
        self.streams, self.processor, self.transforms = streams, processor, transforms
        self.masks, self.blends = masks, blends
        self.batch_size, self.seed, self.length = batch_size, seed, length
        self.self_blended = self_blended
        self.process_index, self.num_processes = process_index, num_processes
        # Shared with the worker processes, which persist as long as the loader.
        self._epoch_and_start = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch, and the number of episodes to skip without decoding, for the next iteration."""
        self._epoch_and_start[:] = torch.tensor([epoch, start])

    def __len__(self) -> int:
        return self.length

    def useful_workers(self, wanted: int) -> int:
        """Number of workers, at most `wanted`, such that each gets a shard of every stream."""
        return min(wanted, *(self._part(stream.frames).num_shards for stream in self.streams))

    def __iter__(self) -> Iterator[list[dict | Skipped]]:
        epoch, start = self._epoch_and_start.tolist()
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = random_numbers("mirroring and masks", self.seed, epoch, self.process_index, number)
        classes = [
            [self._frames_of(index, label, epoch, number) for label in (0, 1)] for index in range(len(self.streams))
        ]
        meta_tests = held_out_domains(len(self.streams), (self.seed, epoch))
        for iteration, meta_test in zip(range(self.length), meta_tests, strict=False):
            if iteration % workers != number:  # a loader takes batches from its workers in turn
                continue
            order = [index for index in range(len(self.streams)) if index != meta_test] + [meta_test]
            rows = [(index, label) for index in order for label in (0, 1) for _ in range(self.batch_size // 2)]
            chances = rng.integers(2**62, size=len(rows)).tolist()
            drawn: list[tuple[Frame, Frame | None]] = []
            for index, label in rows:
                if self.blends and label:
                    drawn.append((next(classes[index][0]), next(classes[index][0])))
                elif self.self_blended and label:
                    drawn.append(drawn[-(self.batch_size // 2)])
                else:
                    drawn.append((next(classes[index][label]), None))
            if iteration >= start:
                yield [
                    self._read(*frames, Draw(index, -1, chance, self.self_blended and label == 1))
                    for frames, (index, label), chance in zip(drawn, rows, chances, strict=True)
                ]

    def _part(self, frames: datasets.IterableDataset) -> datasets.IterableDataset:
        return split_dataset_by_node(frames, self.process_index, self.num_processes)

    def _frames_of(self, index: int, label: int, epoch: int, worker: int) -> Iterator[Frame]:
        """Yield frames of one class of one domain endlessly."""
        stream = self.streams[index]
        for visit in itertools.count():
            # Only the shards are shuffled, equally in all processes, so that the frames of a video stay together.
            rng = random_numbers("order of shards", self.seed, epoch, index, label, visit)
            shuffled = stream.frames.shuffle(int(rng.integers(2**31)), buffer_size=1, max_buffer_input_shards=1)
            of_class = (frame for frame in stream.read(self._part(shuffled)) if frame.label == label)
            of_part = epoch, index, label, visit, self.process_index, worker
            rng = random_numbers("order of frames", self.seed, *of_part)
            found = False
            for frame in _shuffled(_some_of_each_video(of_class, rng), rng):
                found = True
                yield frame
            if not found:
                raise DomainError(
                    f"Domain {stream.name!r}: process {self.process_index}, worker {worker} found no "
                    f"{CLASS_NAMES[label]} frame in its share of the stream; fewer processes or workers have "
                    "larger shares."
                )

    def _read(self, frame: Frame, source: Frame | None, draw: Draw) -> dict | Skipped:
        try:
            return read_frame(frame, draw, self.processor, self.transforms, self.masks, source)
        except ImageError as error:
            return Skipped(frame.domain, draw.row, str(error))


def _some_of_each_video(frames: Iterable[Frame], rng: np.random.Generator) -> Iterator[Frame]:
    """Yield at most `FRAMES_OF_A_VIDEO` random frames of each sequence of frames of one video."""
    for _, run in itertools.groupby(frames, key=lambda frame: (frame.method, frame.video_id)):
        chosen: list[Frame] = []
        for seen, frame in enumerate(run):
            if seen < FRAMES_OF_A_VIDEO:
                chosen.append(frame)
            elif (place := int(rng.integers(seen + 1))) < FRAMES_OF_A_VIDEO:  # reservoir sampling
                chosen[place] = frame
        yield from chosen


def _shuffled(frames: Iterable[Frame], rng: np.random.Generator) -> Iterator[Frame]:
    """Shuffle frames through a buffer of `BUFFER_SIZE` frames."""
    buffer: list[Frame] = []
    for frame in frames:
        if len(buffer) < BUFFER_SIZE:
            buffer.append(frame)
            continue
        place = int(rng.integers(BUFFER_SIZE))
        yield buffer[place]
        buffer[place] = frame
    yield from (buffer[place] for place in rng.permutation(len(buffer)))
