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


def write_methods(folder: Path, order=None, broken: tuple[int, ...] = (), split: str = "test", **columns) -> str:
    """Two videos of three frames, each real and in two forgeries, all of one name; sorted, or in the order given."""
    rows = [
        (video, method, frame)
        for video in ("033", "034")
        for method in ("Deepfakes", "FaceSwap", "real")
        for frame in range(3)
    ]
    rng = np.random.default_rng(7)
    noise = [rng.integers(0, 255, (24, 24), np.uint8) for _ in rows]
    data = {
        "image": [{"bytes": b"broken" if i in broken else png(noise[i]), "path": None} for i in range(len(rows))],
        "label": [int(method != "real") for _, method, _ in rows],
        "video_id": [video for video, _, _ in rows],
        "method": [method for _, method, _ in rows],
        "frame": [frame for _, _, frame in rows],
    } | columns
    order = range(len(rows)) if order is None else order
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: [values[row] for row in order] for name, values in data.items() if values is not None}
    datasets.Dataset.from_dict(kept).to_parquet(folder / f"{split}.parquet")
    return str(folder)


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


def build_masked(root, videos=6, frames=20):
    """Google's DeepFakeDetection with masks; `--detector none` fits it."""
    fakes = root / "manipulated_sequences/DeepFakeDetection"
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[16:48, 16:48] = 255
    for number in range(videos):
        still = texture(number)
        moving = [np.roll(still, n, axis=1) for n in range(frames)]
        write_video(root / f"original_sequences/actors/c23/videos/{number:02}__scene.mp4", moving)
        name = f"{number:02}_{number + 1:02}__scene__ABCDEFGH.mp4"
        write_video(fakes / "c23/videos" / name, moving[::-1])
        write_video(fakes / "masks/videos" / name, [mask] * frames)
    return root
