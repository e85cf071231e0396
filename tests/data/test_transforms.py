"""Training transforms: what they change, what they keep, and that one number decides all of it."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gmdf_hf.data.transforms import TRANSFORMS, Blur, Compress, Light, Noise, Rescale, apply


def picture(side: int = 128) -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(side, side + 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def energy(image: Image.Image) -> float:
    """Mean squared difference of neighbouring pixels: the detail of a picture."""
    return float(np.square(np.diff(np.asarray(image, dtype=float), axis=0)).mean())


@pytest.mark.parametrize("transform", TRANSFORMS["standard"], ids=lambda transform: type(transform).__name__)
def test_a_transform_keeps_size_and_colours_and_is_a_function_of_its_random_numbers(transform):
    image, always = picture(200), replace(transform, probability=1.0)
    first, second = (always(image, np.random.default_rng(3)) for _ in range(2))
    assert first.size == image.size and first.mode == "RGB"
    assert np.array_equal(first, second)
    assert not np.array_equal(first, image)
    assert not np.array_equal(first, always(image, np.random.default_rng(4)))
    assert replace(transform, probability=0.0)(image, np.random.default_rng(3)) is image


def test_none_changes_nothing_and_standard_changes_most_pictures():
    image = picture()
    assert apply(TRANSFORMS["none"], image, 7) is image
    changed = [not np.array_equal(apply(TRANSFORMS["standard"], image, chance), image) for chance in range(20)]
    assert sum(changed) >= 18


def test_blur_scale_and_compression_take_detail_and_noise_adds_it():
    image, rng = picture(200), np.random.default_rng(0)
    for transform in (Blur(1.0, (1.5, 1.5)), Rescale(1.0, (56, 56)), Compress(1.0, (40, 40))):
        assert energy(transform(image, rng)) < 0.9 * energy(image)
    flat = Image.new("RGB", (64, 64), (100, 100, 100))
    assert energy(Noise(1.0, 8.0)(flat, rng)) > 1


def test_a_picture_with_fewer_pixels_than_asked_for_is_not_scaled():
    image = picture(40)
    assert Rescale(1.0)(image, np.random.default_rng(0)) is image


def test_light_changes_the_mean_of_channels_and_no_detail_of_a_flat_picture():
    flat = Image.new("RGB", (32, 32), (100, 120, 140))
    changed = np.asarray(Light(1.0)(flat, np.random.default_rng(1)))
    assert changed.reshape(-1, 3).std(0).max() == 0
    assert not np.array_equal(changed[0, 0], (100, 120, 140))
