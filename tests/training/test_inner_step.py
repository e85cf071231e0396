import itertools
import math

import pytest
import torch
from accelerate import Accelerator
from transformers import CLIPModel

from gmdf_hf import TINY_CLIP, GMDFModel
from gmdf_hf.data.episodes import Episode
from gmdf_hf.training.config import TrainConfig
from gmdf_hf.training.inner_optimizer import ExpertAdam
from gmdf_hf.training.meta import inner_loss, keep_experts
from gmdf_hf.training.methods.gmdf import GMDF, MetaOptions
from tests.conftest import PROMPT_IDS, tiny_model
from tests.training.meta_iteration import updated


def fresh_model(clip, **fields) -> GMDFModel:
    """A detector made from a CLIP, with the temperature of web-trained CLIPs."""
    torch.manual_seed(0)
    model = GMDFModel.from_clip(clip, ["a", "b", "c"], prompt_ids=PROMPT_IDS, **fields)
    return model.train()


@pytest.mark.parametrize("temperature", [100, None])
def test_ten_inner_steps_lower_the_loss_each(temperature):
    """Decision D17: at a real CLIP's temperature with the paper's sizes, and at the packaged tiny CLIP's."""
    torch.manual_seed(0)
    sizes = {"expert_bottleneck_size": 64, "prompt_size": 64} if temperature else {"expert_bottleneck_size": 16}
    model = GMDFModel.from_clip(TINY_CLIP, ["a", "b", "c"], **sizes)
    if temperature is not None:
        with torch.no_grad():
            model.logit_scale.fill_(math.log(temperature))
        model.text_affine.shift_scale = 1 / temperature  # as `from_clip` sets it
    images = torch.stack([torch.full((3, 64, 64), x) for x in torch.linspace(-1, 1, 12)]) + 0.3 * torch.randn(64, 64)
    episode = Episode.of(images, torch.tensor([0, 0, 1, 1] * 3), torch.arange(3).repeat_interleave(4))
    fields = TrainConfig.model_fields
    inner = ExpertAdam(fields["inner_learning_rate"].default, fields["inner_max_grad_norm"].default)
    inner.prepare(model.expert_parameters())
    losses = []
    for _ in range(11):
        losses.append(inner_loss(model, episode)[0].item())
        keep_experts(model, updated(model, episode, inner))
    assert all(after < before for before, after in itertools.pairwise(losses)), losses


def test_the_text_shift_is_divided_by_the_loaded_temperature(clip_folder, tmp_path):
    clip = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(100))
    clip.save_pretrained(tmp_path)
    model = fresh_model(tmp_path)
    assert model.text_affine.shift_scale == pytest.approx(0.01)
    model.save_pretrained(tmp_path / "model")
    assert GMDFModel.from_pretrained(tmp_path / "model").text_affine.shift_scale == pytest.approx(0.01)


def test_experts_of_a_block_start_alike_and_their_prompts_do_not(clip_folder):
    """Independently initialised experts learn in random directions, which the mean over experts cancels."""
    model = fresh_model(clip_folder, dil="affine_bias")
    for layer in model.vision_model.encoder.layers:
        for weight in (layer.experts.up_weight, layer.experts.down_weight, layer.experts.dil.gain_weight):
            assert torch.equal(weight[0], weight[1]) and torch.equal(weight[0], weight[2]) and weight.any()
        gains = layer.experts.dil.gains(model.domain_prompts)
        assert not torch.equal(gains[0], gains[1])
        assert 0.02 < (gains - 1).std() < 0.3
        assert not layer.experts.alpha.any()


def test_both_routes_of_new_experts_move_together(episode, clip_folder):
    """Ten steps on the route of the images' own domain change the aggregated route by a similar amount."""
    model = fresh_model(clip_folder)
    with torch.no_grad():
        before = [
            model(episode.pixel_values, **route).image_embeds for route in ({"domain_ids": episode.domain_ids}, {})
        ]
    inner = ExpertAdam(1e-3)
    inner.prepare(model.expert_parameters())
    for _ in range(10):
        keep_experts(model, updated(model, episode, inner))
    rows = episode.source
    with torch.no_grad():
        own = model(episode.pixel_values, domain_ids=episode.domain_ids).image_embeds - before[0]
        aggregated = model(episode.pixel_values, active_experts=[0, 2]).image_embeds - before[1]
    assert aggregated[rows].norm() > 0.5 * own[rows].norm() > 0.01


class Scaler(torch.amp.GradScaler):
    """A gradient scaler whose first scale overflows half precision."""

    def __init__(self) -> None:
        super().__init__("cpu", init_scale=2.0**40, growth_interval=10**6)


def test_an_overflow_in_the_inner_step_reaches_the_scaler(episode):
    """The scaler checks only the gradients of theta_O, which stay finite if the inner step overflows."""
    model, accelerator = tiny_model(), Accelerator()
    method = GMDF(ExpertAdam(1e-3), MetaOptions(alignment_queue=8), batch_size=4)
    shared = method.prepare(model)
    optimizer = torch.optim.SGD(shared, lr=1e-3)
    accelerator.scaler = Scaler()
    before = {name: parameter.clone() for name, parameter in model.expert_parameters().items()}
    with pytest.MonkeyPatch.context() as patch:
        # Only the inner gradient overflows: the inner step calls autograd.grad, the outer step backward.
        grad = torch.autograd.grad
        patch.setattr(
            torch.autograd, "grad", lambda *a, **k: [None if g is None else g * torch.inf for g in grad(*a, **k)]
        )
        method.step(model, episode, accelerator)
    for name, parameter in model.expert_parameters().items():
        assert torch.equal(parameter, before[name]), name
    weights = [parameter.detach().clone() for parameter in shared]
    accelerator.scaler.step(optimizer)
    accelerator.scaler.update()
    assert accelerator.scaler.get_scale() < 2.0**40
    assert all(torch.equal(parameter, weight) for parameter, weight in zip(shared, weights, strict=True))
