"""Scores of a domain's frames by a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch.utils.data import DataLoader
from transformers.image_processing_utils import BaseImageProcessor

from gmdf_hf.dataset import Domain
from gmdf_hf.frames import FrameReader, Skipped, collate


@torch.no_grad()
def score_domain(
    model: torch.nn.Module,
    domain: Domain,
    processor: BaseImageProcessor,
    batch_size: int = 64,
    num_workers: int = 0,
    encode_captions: Callable[[list[str]], torch.Tensor] | None = None,
) -> tuple[pd.DataFrame, list[Skipped]]:
    """Score every readable frame of a domain, its own identity unknown to the model (the aggregated route).

    Args:
        model: Classifier whose output has `logits` of shape `(B, 2)`, real and fake.
        domain: Frames to score.
        processor: The model's image processor.
        batch_size: Images at a time.
        num_workers: Processes that decode images.
        encode_captions: Captions to class sentences `(B, 2, length)`, for template P3.

    Returns:
        A row a frame, `domain, video_id, frame, label, score, face_found`, and the frames that could not be read.
        `face_found` is True: these frames are face crops already.
    """
    model.eval()
    device = next(model.parameters()).device
    order = [
        [(0, row) for row in range(i, min(i + batch_size, len(domain)))] for i in range(0, len(domain), batch_size)
    ]
    loader = DataLoader(
        FrameReader([domain], processor), batch_sampler=order, collate_fn=collate, num_workers=num_workers
    )
    rows, scores, skipped = [], [], []
    for batch in loader:
        skipped += batch["skipped"]
        if "rows" not in batch:
            continue
        extra = {}
        if encode_captions is not None and domain.captions is not None:
            extra["prompt_ids"] = encode_captions(batch["captions"]).to(device)
        logits = model(pixel_values=batch["pixel_values"].to(device), **extra).logits
        scores += logits.float().softmax(-1)[:, 1].tolist()
        rows += batch["rows"].tolist()
    table = pd.DataFrame(
        {
            "domain": domain.name,
            "video_id": [domain.video_ids[row] for row in rows],
            "frame": domain.frame_numbers[rows].astype("int32"),
            "label": domain.labels[rows].astype("int8"),
            "score": pd.array(scores, dtype="float64"),
            "face_found": True,
        }
    )
    return table, skipped


def score_domains(model: torch.nn.Module, domains: Sequence[Domain], **arguments) -> tuple[pd.DataFrame, list[Skipped]]:
    """Scores of several domains in one table; the other arguments and the result are those of `score_domain`."""
    parts = [score_domain(model, domain, **arguments) for domain in domains]
    return pd.concat([table for table, _ in parts], ignore_index=True), [item for _, part in parts for item in part]
