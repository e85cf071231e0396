import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from transformers.activations import QuickGELUActivation

from gmdf_hf.modeling import GMDFConfig, GMDFModel
from gmdf_hf.modeling.activation_gmdf import QuickGELU
from tests.conftest import tiny_model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_those_of_transformers_to_rounding(dtype):
    x = torch.linspace(-20, 20, 401).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()

    def results(activation, x):
        y = activation(x)
        with torch.no_grad():
            assert torch.equal(activation(x), y)
        return torch.stack([y, *torch.autograd.grad(y.sum(), x)]).double()

    expected = results(QuickGELUActivation(), exact)
    found = results(QuickGELU(), x)
    unit = torch.finfo(dtype).eps * (1 + expected.abs())
    assert ((found - expected).abs() <= 4 * unit).all()
    large = torch.tensor([-6e4, 6e4], dtype=dtype)
    torch.testing.assert_close(QuickGELU()(large), large.clamp_min(0))


def test_first_and_second_gradients_are_those_of_finite_differences():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(QuickGELU(), x)
    assert gradgradcheck(QuickGELU(), x)


def test_one_tensor_is_kept_for_the_gradient():
    kept: list[torch.Tensor] = []
    x = torch.randn(8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        QuickGELU()(x)
    assert len(kept) == 1


def test_every_activation_of_a_clip_is_fused_and_no_other_one():
    kinds = [type(module) for module in tiny_model().modules()]
    assert kinds.count(QuickGELU) > 0
    assert QuickGELUActivation not in kinds
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    tower = {**small, "image_size": 32, "patch_size": 8, "hidden_act": "gelu"}
    model = GMDFModel(GMDFConfig(vision_config=tower, text_config={**small, "hidden_act": "gelu"}))
    assert QuickGELU not in [type(module) for module in model.modules()]
