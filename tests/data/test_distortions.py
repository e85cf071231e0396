import itertools

import numpy as np
import pytest
from PIL import Image

from gmdf_hf.data.distortions import DISTORTIONS, LEVELS, DistortingProcessor, distort, parse_distortion
from gmdf_hf.modeling import GMDFImageProcessor


@pytest.fixture
def picture() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 255, (12, 24, 3), np.uint8)
    return Image.fromarray(small).resize((120, 60), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_a_higher_level_takes_more_away(kind, picture):
    before = np.asarray(picture, dtype=float)
    distances = []
    for level in range(1, LEVELS + 1):
        worse = distort(picture, kind, level)
        assert (worse.size, worse.mode) == (picture.size, "RGB")
        distances.append(np.abs(np.asarray(worse, dtype=float) - before).mean())
    assert distances[0] > 0
    assert all(later > 0.9 * before for before, later in itertools.pairwise(distances))
    assert distances[-1] > 1.2 * distances[0]


def test_what_the_kinds_do(picture):
    grey = np.asarray(distort(picture, "saturate", 5), dtype=int)
    assert np.ptp(grey, axis=2).max() <= 1
    assert np.asarray(distort(picture, "contrast", 5)).std() < 0.5 * np.asarray(picture).std()
    blocks = np.asarray(distort(picture, "pixelate", 3)).reshape(15, 4, 30, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_the_processor_sees_the_worse_picture(picture):
    processor = GMDFImageProcessor.of_size(32)
    found = DistortingProcessor(processor, "blur", 4)(images=picture, return_tensors="pt")["pixel_values"]
    expected = processor(images=distort(picture, "blur", 4), return_tensors="pt")["pixel_values"]
    assert (found == expected).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [("rain:1", "found 'rain'"), ("blur:6", "found 6"), ("blur", "found 'blur'"), ("blur:x", "found 'blur:x'")],
)
def test_unknown_distortions_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_distortion(text)
    assert parse_distortion("blur:2") == ("blur", 2)
