"""LoRA: what trains, and that the saved model is a plain one."""

import sys

import pytest
import torch
from accelerate import Accelerator

from gmdf_hf import GMDFModel
from gmdf_hf.common.errors import UserError
from gmdf_hf.training.methods.lora import LoRA
from gmdf_hf.training.methods.merged import equal_shares
from tests.conftest import tiny_config
from tests.training.methods.test_gend import episode


def test_adapters_and_head_train_and_are_saved_merged(tmp_path):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = GMDFModel(tiny_config(domains=["a", "b"])).train()
    batch, method = episode(), LoRA(equal_shares(2), {"r": 2, "lora_alpha": 4})
    with torch.no_grad():
        before = model(batch.pixel_values).logits
    originals = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = method.prepare(model)
    assert sum(parameter.numel() for parameter in parameters) == 8 * 2 * (32 + 32) + 32 * 16 + 1
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(2):  # the first step moves B alone
        optimizer.zero_grad()
        method.step(model, batch, Accelerator())
        optimizer.step()
    state = method.saved_state(model.eval())
    assert state.keys() == originals.keys()
    layer = model.vision_model.encoder.layers[0].self_attn.q_proj
    merged = originals["vision_model.encoder.layers.0.self_attn.q_proj.weight"] + 4 / 2 * (
        layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    )
    torch.testing.assert_close(state["vision_model.encoder.layers.0.self_attn.q_proj.weight"], merged)
    model.save_pretrained(tmp_path, state_dict=state)
    with torch.no_grad():
        after = model(batch.pixel_values).logits
        torch.testing.assert_close(GMDFModel.from_pretrained(tmp_path)(batch.pixel_values).logits, after)
    assert (after - before).abs().max() > 1e-3


def test_what_cannot_be_made_is_one_sentence(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(UserError, match=r"needs peft: pip install 'gmdf-hf\[peft\]'"):
            LoRA(equal_shares(2), {})
    pytest.importorskip("peft")
    with pytest.raises(UserError, match="rank_of_nothing"):
        LoRA(equal_shares(2), {"rank_of_nothing": 3})
    with pytest.raises(UserError, match="nowhere"):
        LoRA(equal_shares(2), {"target_modules": ["nowhere"]}).prepare(GMDFModel(tiny_config()))
