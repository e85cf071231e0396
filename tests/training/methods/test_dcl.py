"""DCL's contrasts by loops, its queues, and that its views move image and mask alike."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import normalize

from gmdf_hf import GMDFModel
from gmdf_hf.training.methods import dcl
from gmdf_hf.training.methods.dcl import DCL, inter_instance, intra_instance, places_of, view
from gmdf_hf.training.methods.merged import equal_shares
from tests.conftest import tiny_config
from tests.training.methods.test_gend import episode


def unit(*shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))), dim=-1)


def test_contrast_between_images_is_with_hard_keys_of_the_other_class():
    q, k, queues = unit(3, 5), unit(3, 5).flip(0), unit(2, 4, 5)
    labels, filled = torch.tensor([0, 1, 1]), torch.tensor([0, 2])
    found = inter_instance(q, k, labels, queues, filled)
    for row in range(3):
        positive = math.exp(float(q[row] @ k[row]) / 0.07)
        other = 1 - int(labels[row])
        negatives = sum(math.exp(float(q[row] @ queues[other][n]) / 0.07) for n in range(int(filled[other])))
        assert float(found[row]) == pytest.approx(-math.log(positive / (positive + negatives)), rel=1e-4, abs=1e-6)
    assert found[1] == found[2] == 0 < found[0]  # no hard real yet


def test_contrast_within_images_is_of_genuine_and_forged_places():
    local, labels = unit(4, 3, 5), torch.tensor([0, 1, 1, 1])
    forged = torch.tensor([[0.0, 0, 0], [0, 0, 0.5], [-1, -1, -1], [1, 1, 1]])
    found = intra_instance(local, labels, forged)

    def power(row: int, i: int, j: int) -> float:
        return math.exp(float(local[row, i] @ local[row, j]) / 0.07)

    of_real = sum(power(0, i, j) for i in range(3) for j in range(3)) / 9
    assert float(found[0]) == pytest.approx(0.01 * (1 / 0.07 - math.log(of_real)), rel=1e-4, abs=1e-6)
    within = sum(power(1, i, j) for i in (0, 1) for j in (0, 1))
    across = power(1, 2, 0) + power(1, 2, 1)
    assert float(found[1]) == pytest.approx(-math.log(within / (within + across)), rel=1e-4, abs=1e-6)
    assert found[2] == found[3] == 0  # unknown; nothing genuine


def test_views_move_image_and_mask_alike():
    torch.manual_seed(0)
    forged = torch.rand(16, 12, 12)
    images = forged[:, None].repeat(1, 3, 1, 1)
    seen, moved = view(images, forged)
    assert not torch.equal(seen, images)
    for picture, mask, before in zip(seen, moved, forged, strict=True):
        assert torch.equal(mask.flatten().sort().values, before.flatten().sort().values)
        # Either equal, or the picture's high frequencies are enhanced.
        assert (
            torch.equal(picture[0], mask)
            or float(torch.corrcoef(torch.stack([picture[0].flatten(), mask.flatten()]))[0, 1]) > 0.9
        )


def test_places_are_patches_or_positions():
    maps, forged = torch.randn(2, 5, 3, 3), torch.zeros(2, 9, 9)
    forged[:, :3, 3:6] = 1
    local, shares = places_of(maps, forged)
    torch.testing.assert_close(local[1, 4], normalize(maps[1, :, 1, 1], dim=0))
    assert shares[0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    tokens = torch.cat([torch.randn(2, 1, 5), maps.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(places_of(tokens, forged)[0], local)


def test_hard_keys_are_those_like_the_other_class(monkeypatch):
    monkeypatch.setattr(dcl, "HARD", 2)
    monkeypatch.setattr(dcl, "QUEUE", 3)
    method = DCL(equal_shares(2))
    method.prepare(GMDFModel(tiny_config(domains=["a", "b"], projection_dim=8)))
    keys, labels = unit(8, 8), torch.tensor([0, 1] * 4)
    method.enqueue(keys, labels)
    means = [keys[labels == label].mean(0) for label in (0, 1)]
    for label in (0, 1):
        torch.testing.assert_close(method.prototypes[label], means[label])
        own = keys[labels == label]
        order = sorted(range(4), key=lambda row: -float(own[row] @ means[1 - label]))
        torch.testing.assert_close(method.queues[label, :2], own[order[:2]])
    assert method.filled.tolist() == [2, 2]
    method.enqueue(keys.flip(1), labels)
    torch.testing.assert_close(method.prototypes[0], 0.9 * means[0] + 0.1 * means[0].flip(0))
    assert method.filled.tolist() == [3, 3]


def test_a_step_moves_the_slow_copy_and_keeps_its_state():
    torch.manual_seed(0)
    model, method = GMDFModel(tiny_config(domains=["a", "b"])).train(), DCL(equal_shares(2))
    optimizer = torch.optim.Adam(method.prepare(model), lr=0.1)
    name = "visual_projection.weight"
    for _ in range(2):
        before, target = method.keys.get_parameter(name).clone(), model.get_parameter(name).detach().clone()
        losses = method.step(model, episode(), Accelerator())
        torch.testing.assert_close(method.keys.get_parameter(name), 0.999 * before + 0.001 * target)
        optimizer.step()
        optimizer.zero_grad()
    assert set(losses) == {"classification", "inter", "intra"} and losses["inter"] > 0
    assert {"queues", "filled", "prototypes", f"keys.{name}"} <= method.state().keys()
    assert all(not parameter.requires_grad for parameter in method.keys.parameters())
