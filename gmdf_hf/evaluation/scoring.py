"""Scores of a domain's frames by a model.

A score may depend, in its last bits, on the shape of the batch and on the image's place in it. So frames are put in one
order whatever order they came in, and cut into batches whose shape is always the same; a frame that cannot be read
leaves its place empty. Who scores which batch then makes no difference. A stream's batches follow its own order.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import DataLoader
from transformers.image_processing_utils import BaseImageProcessor

from gmdf_hf.common.images import ImageError, open_image
from gmdf_hf.common.processes import num_processes, process_index
from gmdf_hf.data.dataset import Domain
from gmdf_hf.data.frames import Draw, Frame, Skipped, frame_of, read_frame
from gmdf_hf.data.streams import Stream, stream_frames
from gmdf_hf.evaluation.precision import scoring_in

Encoder = Callable[[list[str]], torch.Tensor]


class Batch(NamedTuple):
    """Frames that a model sees together, and which of the domain's batches they are."""

    number: int
    frames: list[Frame]


class ScoredBatch(NamedTuple):
    """A batch with the probability of fake of each frame, or `nan` and the reason why it could not be read."""

    number: int
    frames: list[Frame]
    scores: np.ndarray
    reasons: list[str]


@dataclass(frozen=True)
class FrameBatches:
    """A domain's frames, cut into batches.

    Attributes:
        name: Name of the domain.
        batches: Its batches in their order, of equal size but the last; to be gone through once.
        images: Where the frames' images are looked up; None if frames bring them along.
        has_captions: Whether its frames have captions.
    """

    name: str
    batches: Iterable[list[Frame]]
    images: datasets.Dataset | None
    has_captions: bool


def batch_domain(domain: Domain, batch_size: int) -> FrameBatches:
    """Batches of `fixed_batches`: the same whatever order the data have."""
    batches = ([frame_of(domain, row) for row in rows] for rows in fixed_batches(domain, batch_size))
    return FrameBatches(domain.name, batches, domain.frames, domain.captions is not None)


def batch_stream(stream: Stream, batch_size: int) -> FrameBatches:
    """Batches of frames as they come; they are not decoded, so those that are left out cost their reading only."""
    frames = stream_frames(stream)
    batches = iter(lambda: list(itertools.islice(frames, batch_size)), [])
    return FrameBatches(stream.name, batches, None, "caption" in stream.frames.column_names)


def fixed_batches(domain: Domain, batch_size: int) -> list[list[int]]:
    """Rows of a domain, sorted by video, method, frame and label, in batches of equal size but the last.

    Rows that agree in all four are sorted by their images' bytes, so that the order never is that of the input.
    """
    frames = zip(domain.videos, domain.frame_numbers.tolist(), domain.labels.tolist(), strict=True)
    keys = [(video, method, number, label) for (method, video), number, label in frames]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or keys[order[end]] != keys[order[start]]:
            if end - start > 1:
                order[start:end] = sorted(order[start:end], key=lambda row: _digest(domain, row))
            start = end
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _digest(domain: Domain, row: int) -> bytes:
    stored = domain.frames[row]["image"] or {"bytes": None, "path": None}
    return hashlib.sha256(stored["bytes"] if stored["bytes"] is not None else str(stored["path"]).encode()).digest()


def read_picture(domain: Domain, row: int) -> Image.Image:
    """One frame of a domain as an RGB picture.

    Raises:
        ImageError: If it cannot be read.
    """
    stored = domain.frames[row]["image"]
    content = stored["bytes"] if stored["bytes"] is not None else stored["path"]
    return open_image(content, name=f"{domain.name}, video {domain.video_ids[row]}")


class BatchReader(torch.utils.data.Dataset):
    """Reads whole batches, an index being a `Batch`, to images of shape `(batch_size, 3, H, W)`.

    Args:
        processor: The model's image processor.
        batch_size: A shorter batch is filled up with black images, and so is the place of an unreadable one.
        images: Where images are looked up by their frames' rows; None if frames bring them along.
    """

    def __init__(self, processor: BaseImageProcessor, batch_size: int, images: datasets.Dataset | None):
        self.processor, self.batch_size, self.images = processor, batch_size, images

    def __getitem__(self, batch: Batch) -> tuple[Batch, torch.Tensor | None, list[str]]:
        """Return the batch without encoded images, its pixels (None if none can be read), and why not, or nothing."""
        pixel_values, reasons = None, []
        for slot, frame in enumerate(batch.frames):
            image = frame.image if self.images is None else self.images[frame.row]["image"]
            try:
                item = read_frame(frame._replace(image=image), Draw(0, frame.row), self.processor)["pixel_values"]
            except ImageError as error:
                reasons.append(str(error))
                continue
            if pixel_values is None:
                pixel_values = item.new_zeros(self.batch_size, *item.shape)
            pixel_values[slot] = item
            reasons.append("")
        return Batch(batch.number, [frame._replace(image=None) for frame in batch.frames]), pixel_values, reasons


def _as_it_is(item: Any) -> Any:
    return item


@torch.no_grad()
def score_batches(
    model: torch.nn.Module,
    source: FrameBatches,
    batches: Iterable[Batch],
    processor: BaseImageProcessor,
    batch_size: int,
    num_workers: int = 0,
    encode_captions: Encoder | None = None,
    fake: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Iterator[ScoredBatch]:
    """Score some of a domain's batches, in their order.

    Args:
        model: Classifier whose output has `logits` of shape `(B, 2)`.
        source: The domain.
        batches: Some of its batches; they are taken as they are needed, in this process.
        processor: The model's image processor.
        batch_size: Size of every batch that the model sees; a shorter one is filled up with black images.
        num_workers: Processes that decode images.
        encode_captions: Captions to class sentences `(B, 2, length)`, for template P3.
        fake: The model's fake class.
        dtype: Data type of the model's layers (see `scoring_in`).
    """
    model.eval()
    device = next(model.parameters()).device
    reader = BatchReader(processor, batch_size, source.images)
    # Batches are the loader's indices, and a stream's frames travel in them: it is read once, and not in the workers.
    loader = DataLoader(reader, batch_size=None, sampler=batches, collate_fn=_as_it_is, num_workers=num_workers)
    for batch, pixel_values, reasons in loader:
        scores = np.full(len(batch.frames), np.nan)
        if pixel_values is not None:
            extra = {}
            if encode_captions is not None and source.has_captions:
                captions = [frame.caption for frame in batch.frames] + [""] * (batch_size - len(batch.frames))
                extra["prompt_ids"] = encode_captions(captions).to(device)
            with scoring_in(model, dtype):
                logits = model(pixel_values=pixel_values.to(device), **extra).logits
            # In double precision: in single, everything 17 above or below is a tie.
            probabilities = logits.double().softmax(-1)[:, fake].cpu().numpy()
            read = np.asarray([not reason for reason in reasons])
            scores[read] = probabilities[: len(scores)][read]
        yield ScoredBatch(batch.number, batch.frames, scores, reasons)


def score_rows(frames: Sequence[Frame], scores: np.ndarray) -> pd.DataFrame:
    """Rows of the table of scores. `face_found` is True: a domain's frames are face crops already."""
    columns = {
        "domain": [frame.domain for frame in frames],
        "video_id": [frame.video_id for frame in frames],
        "frame": np.asarray([frame.number for frame in frames], dtype="int32"),
        "label": np.asarray([frame.label for frame in frames], dtype="int8"),
        "score": scores,
        "face_found": True,
    }
    if any(frame.method is not None for frame in frames):
        columns["method"] = [frame.method for frame in frames]
    return pd.DataFrame(columns)


def score_domain(
    model: torch.nn.Module,
    domain: Domain,
    processor: BaseImageProcessor,
    batch_size: int = 64,
    num_workers: int = 0,
    encode_captions: Encoder | None = None,
    fake: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[pd.DataFrame, list[Skipped]]:
    """Score every readable frame of a domain, its own identity unknown to the model (the aggregated route).

    Several processes share the batches and all get the whole table; they must come here together.

    Args:
        model: Classifier whose output has `logits` of shape `(B, 2)`.
        domain: Frames to score.
        processor: The model's image processor.
        batch_size: Images at a time; it is part of what fixes a score to the last bit.
        num_workers: Processes that decode images.
        encode_captions: Captions to class sentences `(B, 2, length)`, for template P3.
        fake: The model's fake class.
        dtype: Data type of the model's layers (see `scoring_in`).

    Returns:
        A row a frame, `domain, video_id, frame, label, score, face_found`, and `method` if the domain has it, sorted;
        and the frames that could not be read.
    """
    source = batch_domain(domain, batch_size)
    mine = itertools.islice(map(Batch._make, enumerate(source.batches)), process_index(), None, num_processes())
    parts = list(score_batches(model, source, mine, processor, batch_size, num_workers, encode_captions, fake, dtype))
    if num_processes() > 1:
        parts = sorted(gather_object(parts), key=lambda part: part.number)
    frames = [frame for part in parts for frame in part.frames]
    reasons = [reason for part in parts for reason in part.reasons]
    table = score_rows(frames, np.concatenate([part.scores for part in parts]))
    skipped = [Skipped(domain.name, frame.row, why) for frame, why in zip(frames, reasons, strict=True) if why]
    return table[[not reason for reason in reasons]].reset_index(drop=True), skipped


def score_domains(model: torch.nn.Module, domains: Sequence[Domain], **arguments) -> tuple[pd.DataFrame, list[Skipped]]:
    """Scores of several domains in one table; the other arguments and the result are those of `score_domain`."""
    parts = [score_domain(model, domain, **arguments) for domain in domains]
    return pd.concat([table for table, _ in parts], ignore_index=True), [item for _, part in parts for item in part]
