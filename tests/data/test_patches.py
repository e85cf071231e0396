import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmdf_hf.data.patches import draw_mask, patchify


@given(st.integers(1, 4), st.integers(2, 10), st.floats(0.01, 0.99), st.sampled_from(["random", "block"]))
def test_every_image_hides_the_same_number(batch, grid, ratio, strategy):
    mask = draw_mask(batch, grid, ratio, strategy)
    assert mask.shape == (batch, grid**2)
    expected = min(max(round(ratio * grid**2), 1), grid**2 - 1)
    assert mask.sum(1).tolist() == [expected] * batch


def test_blocks_are_connected_and_random_masks_are_not():
    generator = torch.Generator().manual_seed(0)

    def neighbours(mask):  # how many pairs of hidden patches touch
        grid = mask.view(-1, 14, 14)
        return int((grid[:, 1:] & grid[:, :-1]).sum() + (grid[:, :, 1:] & grid[:, :, :-1]).sum())

    block = draw_mask(20, 14, 0.2, "block", generator)
    assert neighbours(block) > 2 * neighbours(draw_mask(20, 14, 0.2, "random", generator))


def test_masks_repeat_by_seed():
    first, second = (draw_mask(3, 8, 0.2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw_mask(3, 8, 0.2, generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(("ratio", "strategy"), [(0.0, "random"), (1.0, "random"), (0.2, "grid")])
def test_bad_masks_are_refused(ratio, strategy):
    with pytest.raises(ValueError, match="must"):
        draw_mask(1, 4, ratio, strategy)


def test_patches_are_those_of_the_image():
    image = torch.arange(3 * 8 * 8).float().view(1, 3, 8, 8)
    patches = patchify(image, 4)
    assert patches.shape == (1, 4, 48)
    assert torch.equal(patches[0, 1].view(3, 4, 4), image[0, :, :4, 4:])
    assert torch.equal(patches[0, 2].view(3, 4, 4), image[0, :, 4:, :4])
