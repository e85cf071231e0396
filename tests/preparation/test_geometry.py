import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gmdf_hf.preparation.geometry import ARCFACE_TEMPLATE, crop_aligned, crop_box, similarity, square_box

SIDE = st.integers(8, 400)


@given(SIDE, SIDE, st.floats(-20, 380), st.floats(-20, 380), st.floats(1, 500), st.floats(1, 500), st.floats(0.5, 3))
def test_square_box_is_square_and_inside(width, height, left, top, box_width, box_height, scale):
    if left >= width or top >= height or left + box_width <= 0 or top + box_height <= 0:
        with pytest.raises(ValueError, match="lies outside"):
            square_box((left, top, left + box_width, top + box_height), (width, height), scale)
        return
    x0, y0, x1, y1 = square_box((left, top, left + box_width, top + box_height), (width, height), scale)
    assert x1 - x0 == y1 - y0 >= 1
    assert min(x0, y0) >= 0 and x1 <= width and y1 <= height


def test_square_box_is_centred_and_widened():
    assert square_box((100, 100, 200, 180), (640, 480), 1.3) == (85, 75, 215, 205)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (float("nan"), 0, 1, 1)])
def test_box_without_area_is_named(box):
    with pytest.raises(ValueError, match="needs left < right"):
        square_box(box, (64, 64))


@given(st.floats(-3, 3), st.floats(0.1, 10), st.floats(-50, 50), st.floats(-50, 50))
def test_similarity_recovers_a_known_one(angle, scale, x, y):
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(ARCFACE_TEMPLATE, ARCFACE_TEMPLATE @ linear.T + [x, y])
    np.testing.assert_allclose(matrix, np.column_stack([linear, [x, y]]), atol=1e-8)


def test_coinciding_landmarks_are_refused():
    with pytest.raises(ValueError, match="distinct"):
        similarity(np.ones((5, 2)), ARCFACE_TEMPLATE)


@pytest.mark.parametrize("factor", [1, 4])
def test_aligned_crop_puts_the_points_on_the_template(factor):
    landmarks = (ARCFACE_TEMPLATE * 80 + 60) * factor
    image = np.zeros((200 * factor, 200 * factor, 3), np.uint8)
    for x, y in landmarks.round().astype(int):
        image[y - 2 * factor : y + 2 * factor + 1, x - 2 * factor : x + 2 * factor + 1] = 255
    crop = np.asarray(crop_aligned(Image.fromarray(image), landmarks, 112))
    for x, y in (((ARCFACE_TEMPLATE - 0.5) / 1.3 + 0.5) * 112).round().astype(int):
        assert crop[y, x].min() > 200


def test_crop_box_reads_the_right_pixels():
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, 40:60] = 255
    assert np.asarray(crop_box(Image.fromarray(image), (40, 40, 60, 60), 20, scale=1.0)).min() == 255
