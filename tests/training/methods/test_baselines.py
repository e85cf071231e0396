"""Steps of the baselines against references, on models with re-drawn zero-initialised weights where they matter."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from gmdf_hf import GMDFModel
from gmdf_hf.data.episodes import Episode
from gmdf_hf.data.patches import draw_mask
from gmdf_hf.training.alignment import Alignment
from gmdf_hf.training.classifiers import freeze_all_but_the_head
from gmdf_hf.training.losses import alignment_loss
from gmdf_hf.training.methods import mldg
from gmdf_hf.training.methods.merged import equal_shares, merged_step, size_shares
from gmdf_hf.training.methods.merged_losses import merged_losses_step
from gmdf_hf.training.methods.mldg import mldg_step
from tests.conftest import tiny_config


@pytest.fixture
def model() -> GMDFModel:
    torch.manual_seed(0)
    model = GMDFModel(tiny_config())
    for parameter in model.expert_parameters().values():
        parameter.requires_grad_(False)
    return model.train()


@pytest.fixture
def episode() -> Episode:
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(12, 3, 32, 32, generator=generator)
    domain_ids = torch.tensor([0] * 4 + [2] * 4 + [1] * 4)
    mask = draw_mask(4, 4, 0.2, generator=generator)
    return Episode.of(pixel_values, torch.tensor([0, 0, 1, 1] * 3), domain_ids, mask=mask)


def losses_of(model, episode) -> torch.Tensor:
    """Mean loss of each domain, in the order of domain indices."""
    each = cross_entropy(model(episode.pixel_values).logits, episode.labels, reduction="none")
    return torch.stack([each[episode.domain_ids == domain].mean() for domain in range(3)])


def gradients(model, loss) -> dict[str, torch.Tensor]:
    shared = model.shared_parameters()
    found = torch.autograd.grad(loss, list(shared.values()), allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(shared, found, strict=True) if gradient is not None}


def assert_grads(model, expected, **tolerance) -> None:
    for name, gradient in expected.items():
        torch.testing.assert_close(model.shared_parameters()[name].grad, gradient, **tolerance)


@pytest.mark.parametrize("shares", [equal_shares(3), size_shares([4000, 1000, 5000])])
def test_merged_domains_count_by_their_share(model, episode, shares):
    expected = gradients(model, (losses_of(model, episode) * shares).sum())
    found = merged_step(model, episode, Accelerator(), shares)
    assert_grads(model, expected)
    assert found["classification"] == pytest.approx(
        float((losses_of(model, episode) * shares).sum().detach()), rel=1e-5
    )
    assert all(parameter.grad is None for parameter in model.expert_parameters().values())


def test_weighing_by_size_is_the_merged_data_set():
    """The mean over all images of domains with 2 and 6 images equals the weighted mean of the domain means."""
    losses = torch.rand(8)
    by_domain = torch.stack([losses[:2].mean(), losses[2:].mean()])
    assert (size_shares([2, 6]) * by_domain).sum() == pytest.approx(float(losses.mean()))
    torch.testing.assert_close(size_shares([5, 5]), equal_shares(2))


def test_mldg_is_two_gradients_the_second_after_a_step(model, episode):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    source = losses_of(model, episode)[[0, 2]].mean()
    first = gradients(model, source)
    twin = GMDFModel(tiny_config()).train()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, gradient in first.items():
            twin.shared_parameters()[name].sub_(0.3 * gradient)
    target = losses_of(twin, episode)[1]
    second = gradients(twin, target)
    found = mldg_step(model, episode, Accelerator(), 0.3, meta_test_weight=0.5)
    assert_grads(model, {name: first[name] + 0.5 * second[name] for name in first}, rtol=1e-4, atol=1e-6)
    assert found["source"] == pytest.approx(float(source.detach()), rel=1e-5)
    assert found["classification"] == pytest.approx(float(target.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name  # restored bit-identically
    assert any(
        (second[name] - gradients(model, losses_of(model, episode)[1])[name]).abs().max() > 1e-4 for name in first
    )


def test_mldg_with_recomputed_activations_is_the_same(model, episode):
    mldg_step(model, episode, Accelerator(), 0.3)
    expected = {name: parameter.grad.clone() for name, parameter in model.shared_parameters().items()}
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.zero_grad()
    mldg_step(model, episode, Accelerator(), 0.3)
    assert_grads(model, expected, rtol=1e-4, atol=1e-6)


def test_mldg_sums_what_the_processes_step_on(model, episode, monkeypatch):
    """Two processes with the same images: the step to theta' uses the sum of both gradients."""
    mldg_step(model, episode, Accelerator(), 0.6)
    expected = {name: parameter.grad.clone() for name, parameter in model.shared_parameters().items()}
    model.zero_grad()
    monkeypatch.setattr(mldg, "sum_over_processes", lambda gradients: [2 * gradient for gradient in gradients])
    mldg_step(model, episode, Accelerator(), 0.3)
    assert_grads(model, expected, rtol=1e-4, atol=1e-6)


def test_mldg_refuses_a_gradient_scaler(model, episode):
    with pytest.raises(ValueError, match="without a gradient scaler"):
        mldg_step(model, episode, SimpleNamespace(scaler=object()), 0.3)


class Codes(torch.nn.Module):
    """Visual codes for tests."""

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.arange(16).expand(len(pixel_values), -1)


def test_merged_losses_add_alignment_and_masked_images(model, episode):
    output = model(episode.pixel_values)
    parts = [output.image_embeds[episode.domain_ids == domain] for domain in (0, 2, 1)]
    aligned = alignment_loss(parts[:2], parts[2])
    expected = gradients(model, losses_of(model, episode).mean() + 0.7 * aligned)
    found = merged_losses_step(model, episode, Accelerator(), None, Alignment(3, 4, 16, 0), alignment_weight=0.7)
    assert set(found) == {"classification", "alignment"}
    assert found["alignment"] == pytest.approx(float(aligned.detach()), rel=1e-4)
    assert_grads(model, expected, rtol=1e-4, atol=1e-5)
    model.zero_grad()
    found = merged_losses_step(model, episode, Accelerator(), Codes(), None)
    assert set(found) == {"classification", "masked_image"}
    assert model.mim_head.code_classifier.weight.grad.any()
    assert all(parameter.grad is None for parameter in model.expert_parameters().values())


def test_a_linear_probe_trains_its_head_alone(model, episode):
    freeze_all_but_the_head(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(model.shared_parameters()) == {"visual_projection.weight", "logit_scale"}
    merged_step(model, episode, Accelerator(), equal_shares(3))
    assert model.visual_projection.weight.grad.any()
    # A linear decision: the difference of logits has the sign of a linear function of the frozen features.
    features = model.vision_model(episode.pixel_values, domain_prompts=model.domain_prompts).pooler_output
    real, fake = model.class_features()
    linear = features @ (model.visual_projection.weight.T @ (fake - real))
    logits = model(episode.pixel_values).logits
    assert ((logits[:, 1] > logits[:, 0]) == (linear > 0)).all()
