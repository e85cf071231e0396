"""Small data sets, to prepare and to train on, with pictures that the tests draw."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from tests.media import write_video


def texture(seed, size=64):
    small = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def build_folder(root, videos=8, frames=12, images=3):
    """A plain folder with videos and images of both classes in three splits; `--detector none` fits it."""
    for split_number, split in enumerate(("train", "validation", "test")):
        for label, kind in enumerate(("real", "fake")):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in range(videos):
                seed = 1000 * split_number + 100 * label + number
                still = texture(seed)
                write_video(folder / f"v{number}.mp4", (np.roll(still, n, axis=1) for n in range(frames)))
            for number in range(images):
                Image.fromarray(texture(5000 + 1000 * split_number + 100 * label + number)).save(
                    folder / f"i{number}.png"
                )
    return root


def png(pixels=0) -> bytes:
    """A picture of one grey value, or of rows of grey values."""
    buffer = io.BytesIO()
    grey = np.full((16, 16), pixels, np.uint8) if np.isscalar(pixels) else np.asarray(pixels, np.uint8)
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder: Path, split: str = "train", rows: int = 8, **columns) -> Path:
    """A split of grey pictures, real and fake in turn, in a Parquet file."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "image": [{"bytes": png(row), "path": None} for row in range(rows)],
        "label": [row % 2 for row in range(rows)],
    } | columns
    datasets.Dataset.from_dict(data).to_parquet(folder / f"{split}.parquet")
    return folder


def write_domain(folder: Path, seed: int, broken: tuple[int, ...] = (), classes: int = 2) -> str:
    """Noise pictures whose fakes are brighter, eight videos a split."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        images, labels = [], []
        for row in range(16):
            label = row % classes
            pixels = rng.integers(0, 150, (64, 64, 3), dtype=np.uint8) + np.uint8(60 * label)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            data = b"not an image" if split == "train" and row in broken else buffer.getvalue()
            images.append({"bytes": data, "path": None})
            labels.append(label)
        videos = [f"{split}-{row // 4}-{row % 2}" for row in range(16)]
        columns = {"image": images, "label": labels, "video_id": videos, "caption": ["a noisy photo"] * 16}
        datasets.Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")
    return str(folder)
