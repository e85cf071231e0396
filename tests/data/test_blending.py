"""Blends of real faces: mask, colours, and what readers make of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.data.blending import blended, with_colours_of
from gmdf_hf.data.dataset import load_domain
from gmdf_hf.data.frames import Draw, FrameReader
from gmdf_hf.data.loading import missing_masks
from gmdf_hf.data.streams import EpisodeStream, load_stream
from tests.domains import png, texture, write_parquet

pytestmark = pytest.mark.usefixtures("own_cache")


def test_colours_become_those_of_the_other_picture():
    rng = np.random.default_rng(0)
    picture, other, mask = rng.uniform(0, 255, (8, 9, 3)), rng.uniform(50, 90, (8, 9, 3)), rng.uniform(0, 1, (8, 9))
    found = with_colours_of(picture, other, mask)
    for channel in range(3):
        for power in (1, 2):  # equal first and second moments
            moments = [np.average(each[..., channel] ** power, weights=mask) for each in (found, other)]
            assert moments[0] == pytest.approx(moments[1])


def test_a_blend_mixes_both_pictures_by_its_mask():
    target, source = (Image.fromarray(texture(seed)) for seed in (1, 2))
    blend, mask = blended(target, source, np.random.default_rng(3))
    assert blend.size == mask.size == target.size and mask.getextrema() == (0, 255)
    pixels, background, share = (np.asarray(each, dtype=float) for each in (blend, target, mask))
    face = with_colours_of(np.asarray(source, dtype=float), background, share / 255)
    for i, j in ((0, 0), (10, 32), (14, 32), (32, 32)):
        weight = share[i, j] / 255
        expected = (weight * face[i, j] + (1 - weight) * background[i, j]).clip(0, 255)
        assert np.abs(pixels[i, j] - expected).max() < 2
    assert np.array_equal(pixels[share == 0], background[share == 0])


def test_readers_replace_fakes_by_blends_of_reals(tmp_path):
    """Reals are below 100, fakes at 200: no fake is seen."""
    grey = [np.full((16, 16), 60 + 4 * row if row % 2 == 0 else 200) for row in range(8)]
    write_parquet(tmp_path / "d", image=[{"bytes": png(each), "path": None} for each in grey])
    processor = GMDFImageProcessor.of_size(16)
    domain = load_domain("d", "train", str(tmp_path / "d"))
    reader = FrameReader([domain], processor, masks=True, blends=True)
    plain = FrameReader([domain], processor)
    brightest = max(plain[0, row]["pixel_values"].max() for row in (0, 2, 4, 6))
    for chance in range(6):
        item = reader[Draw(0, 1, chance)]
        assert item["labels"] == 1 and item["pixel_values"].max() <= brightest + 1e-3
        assert item["forged"].max() > 0.99 and 0 < item["forged"].mean() < 1
    assert torch.equal(reader[Draw(0, 1, 4)]["forged"], reader[Draw(0, 3, 4)]["forged"])  # a function of its number
    assert not reader[0, 2]["forged"].any() and reader[0, 2]["labels"] == 0
    stream = load_stream("d", "train", str(tmp_path / "d"))
    for episode in EpisodeStream([stream], processor, 4, 0, 2, masks=True, blends=True):
        assert [item["labels"] for item in episode] == [0, 0, 1, 1]
        assert all(item["pixel_values"].max() <= brightest + 1e-3 for item in episode)
        assert [bool(item["forged"].any()) for item in episode] == [False, False, True, True]
    assert "fakes of the training splits are not used" in missing_masks([domain], blends=True)
