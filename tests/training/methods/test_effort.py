"""Effort's decomposition and constraints against whole matrices."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import CLIPTextConfig, CLIPVisionConfig

from gmdf_hf import GMDFModel
from gmdf_hf.common.errors import UserError
from gmdf_hf.modeling.detectors import DETECTORS
from gmdf_hf.training.methods.effort import Effort, SubspaceLinear
from gmdf_hf.training.methods.merged import equal_shares
from tests.conftest import tiny_config
from tests.training.methods.test_gend import episode


@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (4, 7)])
def test_a_map_is_the_original_until_it_trains(shape):
    torch.manual_seed(0)
    original, x = nn.Linear(*shape), torch.randn(3, shape[0])
    new = SubspaceLinear(original, rank=2)
    torch.testing.assert_close(new(x), original(x))
    torch.testing.assert_close(new.merged(), original.weight)
    assert float(new.orthogonality().detach()) == pytest.approx(0, abs=1e-9)
    assert float(new.norm_change().detach()) == pytest.approx(0, abs=1e-4)
    assert {name for name, each in new.named_parameters() if each.requires_grad} >= {"left", "values", "right"}


def test_constraints_are_those_of_the_whole_matrices():
    torch.manual_seed(0)
    original = nn.Linear(5, 7)
    new = SubspaceLinear(original, rank=2)
    with torch.no_grad():
        for parameter in (new.left, new.values, new.right):
            parameter.normal_()
        left = torch.cat([new.frozen_left, new.left], 1)
        right = torch.cat([new.frozen_right, new.right])
        expected = 0.0
        for vectors in (list(left.T), list(right)):
            for i, first in enumerate(vectors):
                for j, second in enumerate(vectors):
                    expected += (float(first @ second) - (i == j)) ** 2
        assert float(new.orthogonality()) == pytest.approx(expected, rel=1e-4)
        whole = new.weight + sum(new.values[k] * new.left[:, k, None] * new.right[k] for k in range(2))
        x = torch.randn(3, 5)
        torch.testing.assert_close(new(x), x @ whole.T + original.bias)
        change = abs(float((whole**2).sum() - (original.weight**2).sum()))
        assert float(new.norm_change()) == pytest.approx(change, rel=1e-4)


def test_residuals_and_head_train_and_are_saved_as_plain_matrices(tmp_path):
    torch.manual_seed(0)
    model = GMDFModel(tiny_config(domains=["a", "b"])).train()
    batch, method = episode(), Effort(equal_shares(2))
    with torch.no_grad():
        before = model(batch.pixel_values).logits
    parameters = method.prepare(model)
    assert len(method.maps) == 2 * 4  # blocks, and query, key, value, output
    assert len(parameters) == 3 * 8 + 2  # projection and temperature
    with torch.no_grad():
        torch.testing.assert_close(model(batch.pixel_values).logits, before, rtol=1e-4, atol=1e-4)
    frozen = {name: each.clone() for name, each in model.named_parameters() if not each.requires_grad}
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    losses = method.step(model, batch, Accelerator())
    assert set(losses) == {"classification", "orthogonality", "norm_change"}
    optimizer.step()
    for name, tensor in frozen.items():
        assert torch.equal(model.get_parameter(name), tensor), name
    model.eval().save_pretrained(tmp_path, state_dict=method.saved_state(model))
    with torch.no_grad():
        after = model(batch.pixel_values).logits
        again = GMDFModel.from_pretrained(tmp_path)(batch.pixel_values).logits
    torch.testing.assert_close(again, after, rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 1e-3


def test_parameters_of_the_published_network_are_counted():
    text = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )
    with torch.device("meta"):
        model = GMDFModel(tiny_config(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=768))
        parameters = Effort(equal_shares(3)).prepare(model)
    assert sum(parameter.numel() for parameter in parameters) == 196_704 + 786_433  # published: 0.19 M


def test_a_network_without_attention_is_refused():
    with torch.device("meta"), pytest.raises(UserError, match=r"Xception.* has no attention with linear maps"):
        Effort(equal_shares(2)).prepare(DETECTORS["xception"](width=0.0625))
