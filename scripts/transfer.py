"""How much do domains share? Linear detectors on fixed features, trained on each domain and tested on every one.

python scripts/transfer.py --recipe scripts/recipes/real_faces.yaml

Five kinds of hand-crafted features. Four detect differences unrelated to forgery, by which a detector can tell real
from fake in the data set that it was trained on (shortcuts): `sharpness`, `size` of the picture in pixels, `file
size`, and `layout` (a thumbnail of 16 x 16 pixels), such as a different framing. `texture` is the co-occurrence of
neighbouring noise residuals (Fridrich and Kodovsky 2012) and the radial spectrum. AUC on the training domain measures
its simple cues; AUC on another domain measures their transfer: below 50, a cue of one domain is upside down in the
other. Takes about five minutes for ten thousand pictures on one core.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import Field
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from gmdf_hf.common.errors import exit_on_error
from gmdf_hf.common.images import ImageError
from gmdf_hf.common.options import Options, parse_options
from gmdf_hf.data.dataset import Domain, load_domain
from gmdf_hf.evaluation.scoring import read_picture
from gmdf_hf.evaluation.tables import markdown, percent, rich_table
from gmdf_hf.training.config import load_recipe

THUMBNAIL = 16  # pixels
WINDOW = 224  # side of the centre crop in pixels; no resizing, which destroys the traces
COARSENESS = 2  # quantisation step of residuals in grey values
LARGEST = 2  # residuals are clipped to this number of steps
RINGS = 48  # in the spectrum
# Kinds of features, and the inverse of the penalty on the weights of their detector.
KINDS = {"sharpness": 1.0, "size": 1.0, "file size": 1.0, "layout": 1e-3, "texture": 1e-2}


def sharpness(picture: Image.Image) -> np.ndarray:
    """Logarithm of the variance of the luminance's Laplacian, shape `(1,)`."""
    light = np.asarray(picture.convert("L"), float)
    middle = light[1:-1, 1:-1]
    laplacian = light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:] - 4 * middle
    return np.log1p([laplacian.var() if laplacian.size else 0.0])


def encoded_bytes(domain: Domain, row: int) -> int:
    """Size of a frame's file in bytes."""
    stored = domain.frames[row]["image"]
    return len(stored["bytes"]) if stored["bytes"] is not None else Path(stored["path"]).stat().st_size


def layout(picture: Image.Image) -> np.ndarray:
    """Layout features: a thumbnail, shape `(768,)`."""
    return np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), float).ravel() / 255


def neighbours(channel: np.ndarray) -> np.ndarray:
    """Square roots of the relative frequencies of triples of neighbouring residuals in the rows of a channel, `(125,)`.

    A residual is a pixel minus the mean of its two neighbours, quantised and clipped.
    """
    residuals = (2 * channel[:, 1:-1] - channel[:, :-2] - channel[:, 2:]) / 2
    steps = np.clip(np.round(residuals / COARSENESS), -LARGEST, LARGEST).astype(int) + LARGEST
    base = 2 * LARGEST + 1
    triples = (steps[:, :-2] * base + steps[:, 1:-1]) * base + steps[:, 2:]
    return np.sqrt(np.bincount(triples.ravel(), minlength=base**3) / triples.size)


def spectrum(channel: np.ndarray) -> np.ndarray:
    """Mean log magnitude of the Fourier transform in rings of increasing frequency, `(RINGS,)`."""
    side = min(channel.shape)
    square = channel[:side, :side] * np.hanning(side)[:, None] * np.hanning(side)
    magnitude = np.log1p(np.abs(np.fft.fftshift(np.fft.fft2(square))))
    rows, columns = np.indices(magnitude.shape) - side // 2
    ring = (np.hypot(rows, columns) / (side / 2) * RINGS).astype(int).ravel()
    sums, counts = (np.bincount(ring, weights, RINGS)[:RINGS] for weights in (magnitude.ravel(), None))
    return sums / np.maximum(counts, 1)  # rings of a small picture may be empty


def texture(picture: Image.Image) -> np.ndarray:
    """Texture features: residual triples of three channels along rows and columns, and the spectrum of the first."""
    width, height = picture.size
    left, top = max((width - WINDOW) // 2, 0), max((height - WINDOW) // 2, 0)
    middle = picture.crop((left, top, min(left + WINDOW, width), min(top + WINDOW, height)))
    channels = np.moveaxis(np.asarray(middle.convert("YCbCr"), float), -1, 0)
    parts = [neighbours(way) for channel in channels for way in (channel, channel.T)]
    return np.concatenate([*parts, spectrum(channels[0])])


def features_of(domain: Domain) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Features of each kind `(frames, features)`, labels `(frames,)`, and reasons for skipped frames."""
    rows: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    labels, unread = [], []
    for row in tqdm(range(len(domain)), desc=f"{domain.name}, {domain.split}", unit="img"):
        try:
            picture = read_picture(domain, row)
        except ImageError as error:
            unread.append(str(error))
            continue
        labels.append(domain.labels[row])
        rows["sharpness"].append(sharpness(picture))
        rows["size"].append(np.log(picture.size))
        rows["file size"].append(np.log([encoded_bytes(domain, row)]))
        rows["layout"].append(layout(picture))
        rows["texture"].append(texture(picture))
    return {kind: np.stack(found) for kind, found in rows.items()}, np.array(labels), unread


def transfer(train: dict[str, tuple], test: dict[str, tuple], kind: str) -> list[list[str]]:
    """Table of AUC: a row per training set (each domain, all, all but one) and a column per test domain.

    Args:
        train: `features_of` the training split, by domain.
        test: `features_of` the test split, by domain.
        kind: Kind of features.
    """
    sets = [[name] for name in train] + [list(train)]
    if len(train) > 2:
        sets += [[name for name in train if name != left_out] for left_out in train]
    rows = [["trained on", *test]]
    for names in sets:
        detector = make_pipeline(StandardScaler(), LogisticRegression(C=KINDS[kind], max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence warnings
            detector.fit(
                np.concatenate([train[name][0][kind] for name in names]),
                np.concatenate([train[name][1] for name in names]),
            )
        aucs = [roc_auc_score(labels, detector.decision_function(found[kind])) for found, labels, _ in test.values()]
        rows.append([" + ".join(names), *map(percent, aucs)])
    return rows


class TransferOptions(Options):
    """Which domains to compare."""

    recipe: Path = Field(description="Recipe whose source domains to take.")
    output: Path | None = Field(None, description="Markdown file to write.")


def main(arguments: list[str] | None = None) -> dict[str, list[list[str]]]:
    """Read the command line, compute and print; return the table of each kind of features."""
    options = parse_options(TransferOptions, arguments, __doc__)
    sources = load_recipe(options.recipe, {"method": "direct_merge"}).train_domains
    train, test = (
        {name: features_of(load_domain(name, split, **source.model_dump())) for name, source in sources.items()}
        for split in ("train", "test")
    )
    tables = {kind: transfer(train, test, kind) for kind in KINDS}
    for kind, table in tables.items():
        Console(width=100).print(rich_table(table, f"AUC in %, linear detector on {kind} features, test splits"))
    for reason in (reason for split in (train, test) for _, _, unread in split.values() for reason in unread):
        print(f"left out: {reason}", file=sys.stderr)
    if options.output is not None:
        text = "\n\n".join(f"{kind}:\n\n{markdown(table)}" for kind, table in tables.items())
        options.output.write_text(f"{text}\n", encoding="utf-8")
    return tables


if __name__ == "__main__":
    with exit_on_error("transfer.py"):
        main()
