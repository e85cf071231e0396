import pytest
import torch

from gmdf_hf.training.inner_optimizer import ExpertAdam, ExpertSGD, clipped


def test_a_gradient_is_bounded_for_each_domain_by_itself():
    gradients = [torch.tensor([[3.0], [0.3]]), torch.tensor([4.0, 0.4])]  # norms 5 and 0.5
    weights, biases = clipped(gradients, 1.0)
    torch.testing.assert_close(weights, torch.tensor([[0.6], [0.3]]))
    torch.testing.assert_close(biases, torch.tensor([0.8, 0.4]))
    assert clipped(gradients, None) is gradients


@pytest.mark.parametrize("kind", [ExpertSGD, ExpertAdam])
def test_a_domain_without_a_batch_keeps_everything(kind):
    parameters = {"w": torch.randn(3, 4)}
    optimizer = kind(0.1, max_grad_norm=1.0)
    optimizer.prepare(parameters)
    gradient = torch.randn(3, 4)
    parameters = optimizer.updated(parameters, [gradient], [0, 1, 2])
    before = {name: value.clone() for name, value in optimizer.state().items()}
    gradient[1] = 0
    new = optimizer.updated(parameters, [gradient], [0, 2])
    assert torch.equal(new["w"][1], parameters["w"][1])  # Adam's first moment from the first step would change it
    assert not torch.equal(new["w"][0], parameters["w"][0])
    for name, value in optimizer.state().items():
        assert torch.equal(value[1], before[name][1]), name
