"""Tokens that CLIP's last block leaves out."""

import pytest
import torch

from gmdf_hf import GMDFModel
from tests.conftest import DIL_VARIANTS, tiny_model

ROUTES = [None, torch.tensor([0, 1, 2, 0, 1])]


def last_block_tokens(model: GMDFModel) -> list[tuple[int, ...]]:
    """Images and tokens that the last block's feed-forward half computes in each forward pass, filled as it runs."""
    shapes: list[tuple[int, ...]] = []
    last = model.vision_model.encoder.layers[-1].mlp
    last.register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape[:2])))
    return shapes


def assert_same_gradients(model: GMDFModel, *losses: torch.Tensor) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = [torch.autograd.grad(loss, trained, allow_unused=True) for loss in losses]
    for ours, theirs in zip(*grads, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("domain_ids", ROUTES, ids=["aggregated", "known"])
def test_the_last_block_computes_only_the_class_token_unless_others_are_asked_for(pixel_values, domain_ids):
    model = tiny_model()
    shapes = last_block_tokens(model)
    options = {"domain_ids": domain_ids, "output_expert_weights": True}
    output = model(pixel_values, **options)
    full = model(pixel_values, output_hidden_states=True, **options)
    assert shapes == [(5, 1), (5, 17)]
    assert full.hidden_states[-1].shape[1] == 17
    torch.testing.assert_close(output.logits, full.logits)
    torch.testing.assert_close(torch.stack(output.expert_weights), torch.stack(full.expert_weights))
    assert_same_gradients(model, output.logits.sum(), full.logits.sum())
    model.vision_model.config.output_hidden_states = True
    assert model(pixel_values).hidden_states[-1].shape[1] == 17


@pytest.mark.parametrize("dil", DIL_VARIANTS)
def test_with_masks_the_last_block_also_computes_the_masked_patches(pixel_values, dil):
    model = tiny_model(dil=dil)
    shapes = last_block_tokens(model)
    mask = torch.zeros(5, 16, dtype=torch.bool)
    mask[0, [0, 15]] = mask[3, 7] = mask[4, :] = True  # another number in each image; none in two of them
    options = {"bool_masked_pos": mask, "active_experts": [0, 2]}
    output = model(pixel_values, **options)
    full = model(pixel_values, output_hidden_states=True, **options)
    assert shapes == [(5 + 19, 1), (5, 17)]
    of_image = model.mim_head(full.hidden_states[-1][:, 1:][mask])
    for name, expected in {"logits": full.logits, "mim_code_logits": of_image[0], "mim_pixels": of_image[1]}.items():
        torch.testing.assert_close(output[name], expected)
        torch.testing.assert_close(full[name], expected)
    losses = [o.logits.sum() + o.mim_code_logits.square().sum() + o.mim_pixels.sum() for o in (output, full)]
    assert_same_gradients(model, *losses)
    # Own experts and shares belong to whole images.
    model(pixel_values, bool_masked_pos=mask, domain_ids=ROUTES[1])
    assert model(pixel_values, bool_masked_pos=mask, output_expert_weights=True).expert_weights[-1].shape == (5, 3)
    assert shapes[2:] == [(5, 17)] * 2
