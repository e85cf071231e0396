"""LTW's losses by loops, and its two gradients by finite differences."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gmdf_hf import GMDFModel
from gmdf_hf.data.episodes import Episode
from gmdf_hf.training.methods.ltw import LTW, compactness
from tests.conftest import tiny_config


class Linear(nn.Module):
    """The smallest classifier: logits linear in the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(12, 2)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(pixel_values.flatten(1)))


@pytest.fixture
def episode() -> Episode:
    pixel_values = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Episode.of(pixel_values, torch.tensor([0, 0, 1, 1] * 3), torch.tensor([0] * 4 + [2] * 4 + [1] * 4))


def test_compactness_draws_reals_to_their_centre_and_fakes_away():
    p, labels, centre = torch.tensor([0.1, 0.3, 0.8, 0.6]), torch.tensor([0, 0, 1, 1]), torch.tensor(0.2)
    expected = (0.1**2 + 0.1**2 - 0.6**2 - 0.4**2) / 4
    assert float(compactness(p, labels, torch.full((4,), 0.25), centre)) == pytest.approx(expected, rel=1e-5)


def test_the_centre_is_the_mean_of_all_reals():
    method = LTW(0.1)
    method.prepare(Linear())
    for values in ([0.2, 0.4], [0.9], []):
        method.move_centre(torch.tensor(values))
    assert method.reals.tolist() == pytest.approx([0.5, 3])


def objective(model, method, episode, theta, net, frozen) -> tuple[float, float]:
    """F + G with weights of images that do not follow theta, and G alone, by explicit sums."""

    def loss(weight, bias, row) -> torch.Tensor:
        logits = weight @ episode.pixel_values[row].flatten() + bias
        return logits.logsumexp(0) - logits[episode.labels[row]], logits.softmax(0)[1]

    def source(weight, bias, chosen) -> torch.Tensor:
        total = 0.0
        for row in range(8):
            entropy, p = loss(weight, bias, row)
            sign = 1 if episode.labels[row] == 0 else -1
            total = total + (chosen[row] * entropy + 0.01 * sign * (p - frozen) ** 2) / 8
        return total

    weight, bias = (each.clone().requires_grad_() for each in theta)
    chosen = net(episode.pixel_values[:8].flatten(1).float()).double().detach()
    gradients = torch.autograd.grad(source(weight, bias, chosen), (weight, bias))
    moved = [each.detach() - 0.3 * gradient for each, gradient in zip((weight, bias), gradients, strict=True)]
    tested = float(sum(loss(*moved, row)[0] for row in range(8, 12)) / 4)
    return float(source(weight, bias, chosen).detach()) + tested, tested


def test_gradients_are_those_of_both_objectives(episode):
    torch.manual_seed(0)
    model, method = Linear().double(), LTW(0.3)
    parameters = method.prepare(model)
    with torch.no_grad():  # weights that differ
        method.net.layers[2].weight.normal_()
        fakes = model(episode.pixel_values[:8]).logits.softmax(1)[:, 1]
        centre = float(fakes[episode.labels[:8] == 0].mean())
    found = method.step(model, episode, Accelerator())
    assert set(found) == {"source", "compact", "classification"}
    theta = [model.classifier.weight.detach(), model.classifier.bias.detach()]
    both, tested = objective(model, method, episode, theta, method.net, centre)
    assert float(sum(found.values())) == pytest.approx(both, rel=1e-5)
    assert float(found["classification"]) == pytest.approx(tested, rel=1e-5)
    for place in ((0, 3), (1, 7)):
        values = []
        for change in (1e-3, -1e-3):
            theta[0][place] += change
            values.append(objective(model, method, episode, theta, method.net, centre)[0])
            theta[0][place] -= change
        difference = (values[0] - values[1]) / 2e-3
        assert float(model.classifier.weight.grad[place]) == pytest.approx(difference, rel=1e-2, abs=1e-4)
    layer = method.net.layers[2]
    for place in (int(layer.weight.grad[0].abs().argmax()), int(layer.weight.grad[0].abs().argsort()[-5])):
        values = []
        for change in (0.05, -0.05):
            layer.weight.data[0, place] += change
            values.append(objective(model, method, episode, theta, method.net, centre)[1])
            layer.weight.data[0, place] -= change
        assert float(layer.weight.grad[0, place]) == pytest.approx((values[0] - values[1]) / 0.1, rel=2e-2, abs=1e-5)
    assert len(parameters) == 2 + 4 and set(method.state()) >= {"reals", "net.layers.2.weight"}


def test_a_tower_with_attention_trains():
    torch.manual_seed(0)
    model = GMDFModel(tiny_config()).train()
    pixel_values = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = Episode.of(pixel_values, torch.tensor([0, 0, 1, 1] * 3), torch.tensor([0] * 4 + [2] * 4 + [1] * 4))
    method = LTW(0.01)
    method.prepare(model)
    method.step(model, batch, Accelerator())
    assert model.vision_model.encoder.layers[0].self_attn.q_proj.weight.grad.any()
    assert method.net.layers[2].weight.grad.any()
    with pytest.raises(ValueError, match="without a gradient scaler"):
        method.step(model, batch, SimpleNamespace(scaler=object()))
