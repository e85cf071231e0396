"""Frames for the model: decoding, processing, mirroring, batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.image_processing_utils import BaseImageProcessor

from gmdf_hf.common.images import ImageError, open_image
from gmdf_hf.common.random_numbers import random_numbers
from gmdf_hf.data.blending import blended
from gmdf_hf.data.dataset import Domain
from gmdf_hf.data.self_blended import SelfBlend
from gmdf_hf.data.transforms import Transform, apply
from gmdf_hf.modeling.construction_gmdf import PROMPT_TEMPLATES


class Draw(NamedTuple):
    """A frame to read.

    Attributes:
        domain: Index of its domain.
        row: Its row number in that domain.
        chance: Random number that determines all randomness of this use of the frame: mirroring (odd numbers, the
            paper's only augmentation) and masked patches.
        blended: Whether to make a self-blended image of it, which is a fake.
    """

    domain: int
    row: int
    chance: int = 0
    blended: bool = False


class Frame(NamedTuple):
    """A frame before its image is decoded.

    Attributes:
        domain: Name of its domain.
        row: Its row there.
        video_id: Its video.
        number: Its number in the video.
        method: Forgery method; None if the domain has no methods.
        label: 0 real, 1 fake.
        caption: Description of the image, for prompt P3.
        image: Encoded image in the form of `datasets`, `{"bytes", "path"}`; None if not loaded yet or not stored.
        mask: What was forged, white on black, encoded in the same form; None if not loaded or not stored.
    """

    domain: str
    row: int
    video_id: str
    number: int
    method: str | None
    label: int
    caption: str = ""
    image: dict | None = None
    mask: dict | None = None

    def __str__(self) -> str:
        return f"{self.domain}, video {self.video_id}, frame {self.number}"


class Skipped(NamedTuple):
    """Placeholder for a frame whose image cannot be read.

    Attributes:
        domain: Name of its domain.
        row: Its row number there; -1 in a training stream, which has no row numbers.
        reason: Error message, with the names of video and frame.
    """

    domain: str
    row: int
    reason: str


def frame_of(domain: Domain, row: int) -> Frame:
    """Metadata of one frame of a domain."""
    return Frame(
        domain=domain.name,
        row=row,
        video_id=domain.video_ids[row],
        number=int(domain.frame_numbers[row]),
        method=None if domain.methods is None else domain.methods[row],
        label=int(domain.labels[row]),
        caption="" if domain.captions is None else domain.captions[row],
    )


def read_frame(
    frame: Frame,
    draw: Draw,
    processor: BaseImageProcessor,
    transforms: Sequence[Transform] = (),
    masks: bool = False,
    source: Frame | None = None,
) -> dict:
    """Decode and process one image.

    Args:
        frame: The frame, with its image loaded.
        draw: Index of its domain, and its random number.
        processor: Image processor of the model.
        transforms: Random transforms of the picture, for training.
        masks: Whether to decode what was forged as well.
        source: Another frame, with its image loaded, whose face is blended into this one, which makes it a fake.

    Raises:
        ImageError: If it cannot be read.
    """
    image, mask = _picture(frame.image, str(frame)), None
    if source is not None:
        image, mask = blended(image, _picture(source.image, str(source)), random_numbers("blend", draw.chance))
        frame = frame._replace(label=1)
    if draw.blended:
        frame, transforms = frame._replace(label=1, mask=None), (SelfBlend(), *transforms)
    image = apply(transforms, image, draw.chance)
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"][0]
    item = {
        "pixel_values": pixel_values.flip(-1) if draw.chance % 2 else pixel_values,
        "labels": frame.label,
        "domain_ids": draw.domain,
        "rows": draw.row,
        "chances": draw.chance,
        "names": f"{frame}, self-blended" if draw.blended else str(frame),
        "captions": frame.caption,
    }
    if masks:
        forged = forged_pixels(frame, mask, pixel_values.shape[-1])
        item["forged"] = forged.flip(-1) if draw.chance % 2 else forged
    return item


def _picture(stored: dict | None, name: str) -> Image.Image:
    if stored is None or (stored["bytes"] is None and not stored["path"]):
        raise ImageError(f"{name}: no image is stored.")
    return open_image(stored["bytes"] if stored["bytes"] is not None else stored["path"], name=name)


def forged_pixels(frame: Frame, mask: Image.Image | None, side: int) -> torch.Tensor:
    """Share of each pixel that was forged, shape `(side, side)`.

    Nothing is forged in a real image: its mask is 0. A fake without a mask has -1 everywhere, which is unknown.

    Args:
        frame: The frame, with its mask loaded.
        mask: Mask to use instead of the stored one.
        side: Side of the result in pixels.

    Raises:
        ImageError: If the mask cannot be read.
    """
    if mask is None and (frame.mask is None or not any(frame.mask.values())):
        return torch.full((side, side), -1.0 if frame.label else 0.0)
    picture = mask or _picture(frame.mask, f"mask of {frame}")
    grey = picture.convert("L").resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255)


class FrameReader(torch.utils.data.Dataset):
    """Data set over several domains; an index is a `Draw`, or `(domain, row)`.

    A broken image is returned as `Skipped`, for the caller to count and list; it is never replaced by another image.

    Args:
        domains: Domains in the order of their indices.
        processor: Image processor of the model.
        transforms: Random transforms of the pictures, for training.
        masks: Whether to read what was forged as well.
        blends: Whether blends of two random reals replace the fakes.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        processor: BaseImageProcessor,
        transforms: Sequence[Transform] = (),
        masks: bool = False,
        blends: bool = False,
    ):
        self.domains = domains
        self.processor = processor
        self.transforms = transforms
        self.masks = masks
        self.reals = [np.flatnonzero(domain.labels == 0) for domain in domains] if blends else None

    def __getitem__(self, index: tuple[int, ...]) -> dict | Skipped:
        draw = Draw(*cast(tuple[Any, ...], index))
        domain = self.domains[draw.domain]
        frame, source = frame_of(domain, draw.row), None
        if self.reals is not None and frame.label:
            rows = random_numbers("pair of reals", draw.chance).choice(self.reals[draw.domain], 2).tolist()
            frame, source = (frame_of(domain, row)._replace(image=domain.frames[row]["image"]) for row in rows)
        else:
            frame = frame._replace(image=domain.frames[draw.row]["image"])
        if self.masks and domain.masks is not None:
            frame = frame._replace(mask=domain.masks[draw.row]["mask"])
        try:
            return read_frame(frame, draw, self.processor, self.transforms, self.masks, source)
        except ImageError as error:
            return Skipped(domain.name, draw.row, str(error))


def collate(items: Sequence[dict | Skipped]) -> dict:
    """Stack frames into a batch; unreadable frames are listed under `skipped`."""
    frames = [item for item in items if not isinstance(item, Skipped)]
    batch: dict = {"skipped": [item for item in items if isinstance(item, Skipped)]}
    if frames:
        batch["pixel_values"] = torch.stack([frame["pixel_values"] for frame in frames])
        for key in ("labels", "domain_ids", "rows"):
            batch[key] = torch.tensor([frame[key] for frame in frames])
        for key in ("chances", "names", "captions"):
            batch[key] = [frame[key] for frame in frames]
        if "forged" in frames[0]:
            batch["forged"] = torch.stack([frame["forged"] for frame in frames])
    return batch


def caption_encoder(backbone: str) -> Callable[[list[str]], torch.Tensor]:
    """Return a function from captions to the token ids of template P3's two sentences, shape `(B, 2, length)`.

    A long caption is truncated, so that the class sentence after it stays complete.
    """
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    sentences = tokenizer([template.replace("{caption} ", "") for template in PROMPT_TEMPLATES["P3"]])["input_ids"]
    room = tokenizer.model_max_length - max(map(len, sentences))

    def encode(captions: list[str]) -> torch.Tensor:
        cut = tokenizer(captions, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        rows = [[start, *caption, *rest] for caption in cut for start, *rest in sentences]
        return tokenizer.pad({"input_ids": rows}, return_tensors="pt")["input_ids"].unflatten(0, (len(captions), 2))

    return encode
