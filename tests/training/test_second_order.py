import pytest
import torch

from gmdf_hf.data.episodes import Episode
from gmdf_hf.training.inner_optimizer import ExpertSGD
from gmdf_hf.training.meta import update_experts
from tests.conftest import tiny_model
from tests.training.meta_iteration import BETA, step


class Toy(torch.nn.Module):
    """One expert parameter e, one shared parameter o."""

    def __init__(self):
        super().__init__()
        self.e = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.double))
        self.o = torch.nn.Parameter(torch.tensor(1.3, dtype=torch.double))

    def expert_parameters(self):
        return {"e": self.e}

    def shared_parameters(self):
        return {"o": self.o}


def test_second_order_in_closed_form():
    """Inner loss (e o - 1)^2 / 2 gives e' = e - b (e o - 1) o; outer loss (e' o)^2 has the derivative below."""
    toy = Toy()
    e, o = toy.e.item(), toy.o.item()
    loss = (toy.e * toy.o - 1) ** 2 / 2
    updated = update_experts(toy, loss, ExpertSGD(BETA), [0], second_order=True)[0]["e"]
    new = e - BETA * (e * o - 1) * o
    assert updated.item() == pytest.approx(new)
    slope = torch.autograd.grad((updated * toy.o) ** 2, toy.o)[0].item()
    through_the_update = -BETA * (2 * e * o - 1)  # d e' / d o
    assert slope == pytest.approx(2 * new * o * (new + o * through_the_update))
    first = update_experts(toy, (toy.e * toy.o - 1) ** 2 / 2, ExpertSGD(BETA), [0])[0]["e"].detach()
    assert torch.autograd.grad((first * toy.o) ** 2, toy.o)[0].item() == pytest.approx(2 * new**2 * o)


@pytest.mark.parametrize("order", ["second", "first"])
def test_second_order_equals_finite_differences_and_first_order_does_not(episode, tokenizer, order):
    """Directional derivative of the three losses in theta_O, through the update of theta_E."""
    model, tokenizer = tiny_model().double(), tokenizer.double()
    images = Episode.of(episode.pixel_values.double(), episode.labels, episode.domain_ids, episode.mask)
    generator = torch.Generator().manual_seed(3)
    shared = model.shared_parameters()
    direction = {n: torch.randn(p.shape, generator=generator, dtype=torch.double) for n, p in shared.items()}
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def losses_at(distance: float, second_order: bool) -> float:
        model.zero_grad()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name] + distance * direction.get(name, 0))
        options = {"align_both": True, "second_order": second_order}
        losses = step(model, images, tokenizer, ExpertSGD(1.0, max_grad_norm=0.5), **options)
        return sum(losses[name].item() for name in ("classification", "alignment", "masked_image"))

    width = 1e-6
    expected = (losses_at(width, False) - losses_at(-width, False)) / (2 * width)
    losses_at(0.0, second_order=order == "second")
    slope = sum((parameter.grad * direction[name]).sum().item() for name, parameter in shared.items())
    if order == "second":
        assert slope == pytest.approx(expected, rel=1e-5)
    else:  # otherwise the test cannot distinguish the two orders
        assert slope != pytest.approx(expected, rel=1e-3)


def test_second_order_moves_the_experts_as_first_order_does(episode, tokenizer):
    first, second = tiny_model(), tiny_model()
    for model, order in ((first, False), (second, True)):
        step(model, episode, tokenizer, ExpertSGD(BETA), second_order=order)
    for (name, ours), theirs in zip(
        first.expert_parameters().items(), second.expert_parameters().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)
