"""Self-blended images: one number decides all of them, the face changes and the frame does not."""

import numpy as np
import pytest
from PIL import Image

from gmdf_hf.data.dataset import load_domain
from gmdf_hf.data.episodes import EpisodeSampler
from gmdf_hf.data.frames import Draw, FrameReader
from gmdf_hf.data.loading import make_loader
from gmdf_hf.data.self_blended import RATIOS, SelfBlend
from gmdf_hf.data.streams import load_stream
from gmdf_hf.modeling import GMDFImageProcessor
from tests.domains import texture, write_domain


def blend(seed: int, image: Image.Image) -> np.ndarray:
    return np.asarray(SelfBlend()(image, np.random.default_rng(seed)), dtype=float)


def test_the_face_is_blended_and_the_frame_is_that_of_one_picture():
    image = Image.fromarray(texture(0, 128))
    before = np.asarray(image, dtype=float)
    inside, outside = [], []
    for seed in range(12):
        after = blend(seed, image)
        assert after.shape == before.shape
        assert np.array_equal(after, blend(seed, image))
        change = np.abs(after - before).mean(2)
        inside.append(change[48:80, 48:80].mean())
        outside.append(np.concatenate([change[:4], change[-4:]]).mean())
    assert min(inside) > 0.5
    # Half of the time the target is the picture itself.
    assert 2 <= sum(value == 0 for value in outside) <= 10


def test_masks_are_an_ellipse_times_a_ratio():
    masks = [SelfBlend().mask(np.random.default_rng(seed)) for seed in range(40)]
    peaks = {round(float(mask.max()), 2) for mask in masks}
    assert peaks == set(RATIOS)
    for mask in masks:
        assert mask.min() == 0 and not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
        assert 0.1 < (mask > mask.max() / 2).mean() < 0.45  # pi 0.3 0.37 = 0.35 before erosion
        assert ((mask > 0) & (mask < mask.max())).any()  # soft edges


def test_blending_without_changes_is_the_picture():
    image = Image.fromarray(texture(1, 64))
    still = SelfBlend(shift=(0.0, 0.0), smallest=1.0)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        after = np.asarray(still(image, rng), dtype=float)
        assert after.std() > 0 and np.abs(after - np.asarray(image, dtype=float)).mean() < 60


@pytest.mark.parametrize("processes", [1, 2])
def test_every_fake_is_made_of_the_real_beside_it(processes):
    labels, videos = np.array([0] * 5 + [1] * 9), [f"v{row}" for row in range(14)]
    plain, blended = (
        [
            list(EpisodeSampler([labels] * 2, [videos] * 2, 4, 0, index, processes, self_blended=flag))
            for index in range(processes)
        ]
        for flag in (False, True)
    )
    for usual, ours in zip(plain, blended, strict=True):
        for before, after in zip(usual, ours, strict=True):
            for start in (0, 4):
                reals, fakes = after[start : start + 2], after[start + 2 : start + 4]
                assert reals == before[start : start + 2]
                assert [draw.row for draw in fakes] == [draw.row for draw in reals]
                assert all(draw.blended for draw in fakes) and not any(draw.blended for draw in reals)
                assert [draw.chance for draw in fakes] == [draw.chance for draw in before[start + 2 : start + 4]]


def test_a_self_blended_frame_is_a_fake_with_an_unknown_mask(tmp_path):
    domain = load_domain("x", "train", write_domain(tmp_path / "x", 0))
    reader = FrameReader([domain], GMDFImageProcessor.of_size(32), masks=True)
    real, fake = reader[Draw(0, 0, 4)], reader[Draw(0, 0, 4, blended=True)]
    assert (real["labels"], fake["labels"]) == (0, 1)
    assert (real["forged"] == 0).all() and (fake["forged"] == -1).all()
    assert fake["names"].endswith("self-blended")
    assert not np.array_equal(real["pixel_values"], fake["pixel_values"])


def test_streams_blend_their_reals_too(tmp_path):
    stream = load_stream("x", "train", write_domain(tmp_path / "x", 0))
    _, loader = make_loader([stream], GMDFImageProcessor.of_size(32), 4, 0, 2, self_blended=True)
    for batch in loader:
        assert batch["labels"].tolist() == [0, 0, 1, 1]
        names = [name.removesuffix(", self-blended") for name in batch["names"]]
        assert names[:2] == names[2:] and batch["names"][:2] == names[:2]
