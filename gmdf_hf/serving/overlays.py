"""Verdicts drawn onto pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FAKE, REAL = (214, 39, 40), (31, 119, 180)
STRENGTH = 0.6  # opacity of the strongest patch


def overlay(crop: Image.Image, heatmap: np.ndarray) -> Image.Image:
    """Overlay an evidence map on a face crop: red for fake, blue for real.

    Args:
        crop: The crop, of any size.
        heatmap: Values in [-1, 1], shape `(side, side)`.
    """
    strength = Image.fromarray((np.abs(heatmap).clip(0, 1) * 255 * STRENGTH).astype(np.uint8)).resize(crop.size)
    colors = np.where((heatmap > 0)[..., None], np.asarray(FAKE, np.uint8), np.asarray(REAL, np.uint8))
    shown = crop.convert("RGB").copy()
    shown.paste(Image.fromarray(colors).resize(crop.size, Image.Resampling.NEAREST), mask=strength)
    return shown


def draw_faces(image: Image.Image, faces: Sequence[dict[str, Any]]) -> Image.Image:
    """Draw each face's box and score: red if classified as fake, blue if real.

    Args:
        image: The frame.
        faces: Entries of `faces` in a result of the pipeline, all from this frame.
    """
    shown = image.convert("RGB").copy()
    draw = ImageDraw.Draw(shown)
    size = max(12, min(shown.size) // 30)
    for face in faces:
        color = FAKE if face["label"] == "fake" else REAL
        box = [round(value) for value in face["box"]]
        draw.rectangle(box, outline=color, width=max(2, size // 8))
        text, place = f"{face['label']} {face['score']:.2f}", (box[0], max(0, box[1] - size - 4))
        font = ImageFont.load_default(size)
        draw.rectangle(draw.textbbox(place, text, font=font), fill=color)
        draw.text(place, text, fill="white", font=font)
    return shown
