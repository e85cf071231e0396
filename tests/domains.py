"""Small data sets to prepare, with faces that need no detector weights: they are drawn by the test."""

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
