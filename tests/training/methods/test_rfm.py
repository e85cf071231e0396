"""RFM's attention map by finite differences, its erasing by a literal loop over sorted places, and its step."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from gmdf_hf import GMDFModel
from gmdf_hf.training.methods.merged import equal_shares, merged_step
from gmdf_hf.training.methods.rfm import RFM, blocks_to_erase, forgery_attention
from tests.conftest import tiny_config
from tests.training.methods.test_gend import episode

RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=2)


def erase_by_loops(attention: torch.Tensor, chances: torch.Tensor) -> tuple[torch.Tensor, list[list[tuple]]]:
    """All places from the most telling to the least, those in a block skipped; and the blocks' sizes and places."""
    count, height, width = attention.shape
    erased, blocks = torch.zeros(count, height, width, dtype=torch.bool), []
    tallest, widest = max(round(height * 120 / 224), 1), max(round(width * 120 / 224), 1)
    for image in range(count):
        blocks.append([])
        places = [(float(attention[image, y, x]), y, x) for y in range(height) for x in range(width)]
        for _, y, x in sorted(places, key=lambda place: -place[0]):
            if len(blocks[-1]) == len(chances):
                break
            if erased[image, y, x]:
                continue
            of_height, of_width, of_row, of_column = chances[len(blocks[-1]), :, image].tolist()
            tall, wide = int(of_height * tallest) + 1, int(of_width * widest) + 1
            top, left = y - int(of_row * tall), x - int(of_column * wide)
            for row in range(max(top, 0), min(top + tall, height)):
                for column in range(max(left, 0), min(left + wide, width)):
                    erased[image, row, column] = True
            assert erased[image, y, x]
            blocks[-1].append((tall, wide, y, x))
    return erased, blocks


@pytest.mark.parametrize("shape", [(20, 13), (2, 2), (28, 28)])
def test_blocks_are_those_of_a_loop_over_sorted_places(shape):
    generator = torch.Generator().manual_seed(sum(shape))
    attention = torch.rand(30, *shape, generator=generator)
    chances = torch.rand(3, 4, 30, generator=generator)
    found = blocks_to_erase(attention, chances)
    expected, blocks = erase_by_loops(attention, chances)
    assert torch.equal(found, expected)
    for side in (0, 1):  # every size up to the largest is drawn
        sizes = {block[side] for of_image in blocks for block in of_image}
        assert sizes == set(range(1, max(sizes) + 1)) and max(sizes) == round(shape[side] * 120 / 224)
    if shape[0] > 2:
        ranks = attention.flatten(1).argsort(1, descending=True)[:, :3].tolist()
        places = [[y * shape[1] + x for _, _, y, x in of_image] for of_image in blocks]
        assert places != ranks  # one of the three most telling places was in a block already


@pytest.mark.parametrize("kind", ["gmdf", "resnet"])
def test_attention_is_the_largest_change_of_the_logits_by_a_channel(kind):
    torch.manual_seed(0)
    model = GMDFModel(tiny_config(domains=["a", "b"])) if kind == "gmdf" else ResNetForImageClassification(RESNET)
    batch = episode()
    model.train()(batch.pixel_values)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = forgery_attention(model, batch, Accelerator())
    assert found.shape == (8, 32, 32) and model.training
    # Neither gradients nor running statistics move.
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.double().eval()

    def difference(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = model(pixels).logits
        return logits[:, 1] - logits[:, 0]

    for place in ((4, 9), (30, 17)):
        changes = []
        for channel in range(3):
            step = torch.zeros(3, 32, 32, dtype=torch.float64)
            step[(channel, *place)] = 1e-5
            pixels = batch.pixel_values.double()
            changes.append((difference(pixels + step) - difference(pixels - step)).abs() / 2e-5)
        expected = torch.stack(changes).amax(0).float()
        assert expected.any()
        torch.testing.assert_close(found[(slice(None), *place)], expected, rtol=2e-3, atol=1e-6)


class Seen(nn.Module):
    """Remembers the images of each pass and whether it was one of training."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, []

    def forward(self, pixel_values: torch.Tensor):
        self.passes.append((self.training, pixel_values.detach().clone()))
        return self.model(pixel_values=pixel_values)


def test_a_step_is_that_of_merged_domains_on_images_with_blocks_of_noise():
    torch.manual_seed(0)
    model, batch, shares = Seen(ResNetForImageClassification(RESNET)).train(), episode(), equal_shares(2)
    attention = forgery_attention(model, batch, Accelerator())
    model.passes.clear()
    torch.manual_seed(5)
    losses = RFM(shares).step(model, batch, Accelerator())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    (first, images), (second, erased) = model.passes
    assert not first and second and model.training
    assert torch.equal(images, batch.pixel_values)
    torch.manual_seed(5)  # the run's own random numbers decide
    blocks = blocks_to_erase(attention, torch.rand(3, 4, 8))
    changed = (erased != batch.pixel_values).all(1)
    assert torch.equal(changed, blocks) and 0 < blocks.float().mean() < 0.7
    assert torch.equal((erased != batch.pixel_values).any(1), blocks)
    for image in range(8):
        for channel in range(3):
            values, own = erased[image, channel][blocks[image]], batch.pixel_values[image, channel]
            assert own.min() <= values.min() and values.max() <= own.max()
            assert len(values) < 2 or len(values.unique()) > 1
    model.zero_grad()
    batch.pixel_values.copy_(erased)
    expected = merged_step(model, batch, Accelerator(), shares)
    assert losses == expected
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_small_gradients_of_half_precision_keep_their_order():
    """A gradient scaler's factor changes the map's values alone."""
    torch.manual_seed(0)
    model, batch = ResNetForImageClassification(RESNET), episode()
    plain, scaled = Accelerator(), Accelerator()
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    torch.testing.assert_close(1024 * forgery_attention(model, batch, plain), forgery_attention(model, batch, scaled))
