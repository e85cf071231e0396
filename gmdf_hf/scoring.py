"""Scores of a domain's frames by a model.

A score may depend, in its last bits, on the shape of the batch and on the image's place in it. So frames are put in one
order whatever order they came in, and cut into batches whose shape is always the same; a frame that cannot be read
leaves its place empty. Who scores which batch then makes no difference.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import DataLoader
from transformers.image_processing_utils import BaseImageProcessor

from gmdf_hf.dataset import Domain
from gmdf_hf.frames import FrameReader, Skipped, collate
from gmdf_hf.modeling.images_gmdf import open_image
from gmdf_hf.processes import num_processes, process_index

REAL_NAMES = {"real", "genuine", "authentic", "original", "pristine", "bonafide", "human", "realism", "realface"}
FAKE_NAMES = {"fake", "deepfake", "forged", "forgery", "manipulated", "synthetic", "artificial", "ai", "fakeface"}

Encoder = Callable[[list[str]], torch.Tensor]


def fake_class(id2label: Mapping[int, str], fake_label: str | None = None) -> int:
    """Which of a classifier's two classes is the fake one.

    Args:
        id2label: Names of the classes, from the model's configuration.
        fake_label: Name of the fake class, where the names do not say it themselves.

    Raises:
        ValueError: If there are not two classes, or their names do not tell real from fake.
    """
    names = {int(number): str(name) for number, name in id2label.items()}
    if len(names) != 2:
        raise ValueError(
            f"A detector needs two classes, real and fake, found {len(names)}: {list(names.values())[:5]}."
        )
    if fake_label is not None:
        found = [number for number, name in names.items() if name == fake_label]
        if len(found) != 1:
            raise ValueError(f"The fake class must be one of the model's {list(names.values())}, found {fake_label!r}.")
        return found[0]
    plain = {number: re.sub(r"[^a-z]", "", name.lower()) for number, name in names.items()}
    fakes = [number for number, name in plain.items() if name in FAKE_NAMES]
    reals = [number for number, name in plain.items() if name in REAL_NAMES]
    if len(fakes) != 1 or len(reals) != 1:
        raise ValueError(
            f"The class names {list(names.values())} do not tell real from fake; name the fake one with `fake_label`."
        )
    return fakes[0]


def fixed_batches(domain: Domain, batch_size: int) -> list[list[int]]:
    """Rows of a domain, sorted by video, frame and label, in batches of equal size but the last.

    Rows that agree in all three are sorted by their images' bytes, so that the order never is that of the input.
    """
    keys = list(zip(domain.video_ids, domain.frame_numbers.tolist(), domain.labels.tolist(), strict=True))
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


@torch.no_grad()
def score_batches(
    model: torch.nn.Module,
    domain: Domain,
    batches: Sequence[Sequence[int]],
    processor: BaseImageProcessor,
    batch_size: int,
    num_workers: int = 0,
    encode_captions: Encoder | None = None,
    fake: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray, list[Skipped]]]:
    """Score some of a domain's batches.

    Args:
        model: Classifier whose output has `logits` of shape `(B, 2)`.
        domain: Frames to score.
        batches: Some of `fixed_batches`.
        processor: The model's image processor.
        batch_size: Size of every batch that the model sees; a shorter one is filled up with black images.
        num_workers: Processes that decode images.
        encode_captions: Captions to class sentences `(B, 2, length)`, for template P3.
        fake: The model's fake class.

    Yields:
        For each batch the rows that could be read, their probabilities of fake, and the frames that could not be read.
    """
    model.eval()
    device = next(model.parameters()).device
    loader = DataLoader(
        FrameReader([domain], processor),
        batch_sampler=[[(0, row) for row in rows] for rows in batches],
        collate_fn=collate,
        num_workers=num_workers,
    )
    for rows, batch in zip(batches, loader, strict=True):
        if "rows" not in batch:
            yield np.empty(0, dtype=np.int64), np.empty(0), batch["skipped"]
            continue
        place = {row: slot for slot, row in enumerate(rows)}
        read = batch["rows"].tolist()
        slots = torch.tensor([place[row] for row in read])
        pixel_values = batch["pixel_values"].new_zeros(batch_size, *batch["pixel_values"].shape[1:])
        pixel_values[slots] = batch["pixel_values"]
        extra = {}
        if encode_captions is not None and domain.captions is not None:
            captions = [domain.captions[row] for row in rows] + [""] * (batch_size - len(rows))
            extra["prompt_ids"] = encode_captions(captions).to(device)
        logits = model(pixel_values=pixel_values.to(device), **extra).logits
        # In double precision: in single, everything 17 above or below is a tie.
        probabilities = logits.double().softmax(-1)[:, fake].cpu()[slots]
        yield np.asarray(read), probabilities.numpy(), batch["skipped"]


def score_rows(domain: Domain, rows: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Rows of the table of scores. `face_found` is True: a domain's frames are face crops already."""
    return pd.DataFrame(
        {
            "domain": domain.name,
            "video_id": [domain.video_ids[row] for row in rows],
            "frame": domain.frame_numbers[rows].astype("int32"),
            "label": domain.labels[rows].astype("int8"),
            "score": scores.astype("float64"),
            "face_found": True,
        }
    )


def score_domain(
    model: torch.nn.Module,
    domain: Domain,
    processor: BaseImageProcessor,
    batch_size: int = 64,
    num_workers: int = 0,
    encode_captions: Encoder | None = None,
    fake: int = 1,
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

    Returns:
        A row a frame, `domain, video_id, frame, label, score, face_found`, sorted, and the frames that could not be
        read.
    """
    batches = fixed_batches(domain, batch_size)
    numbers = range(process_index(), len(batches), num_processes())
    mine = [batches[number] for number in numbers]
    scored = score_batches(model, domain, mine, processor, batch_size, num_workers, encode_captions, fake)
    parts = [(number, *part) for number, part in zip(numbers, scored, strict=True)]
    if num_processes() > 1:
        parts = sorted(gather_object(parts), key=lambda part: part[0])
    _, rows, scores, skipped = zip(*parts, strict=True)
    table = score_rows(domain, np.concatenate(rows), np.concatenate(scores))
    return table, [item for of_batch in skipped for item in of_batch]


def score_domains(model: torch.nn.Module, domains: Sequence[Domain], **arguments) -> tuple[pd.DataFrame, list[Skipped]]:
    """Scores of several domains in one table; the other arguments and the result are those of `score_domain`."""
    parts = [score_domain(model, domain, **arguments) for domain in domains]
    return pd.concat([table for table, _ in parts], ignore_index=True), [item for _, part in parts for item in part]
