import re

import pytest
import torch
from torch.nn.functional import cross_entropy, l1_loss

from gmdf_hf import GMDFModel
from gmdf_hf.data.episodes import Episode
from gmdf_hf.data.patches import patchify
from gmdf_hf.training.alignment import Alignment
from gmdf_hf.training.classifiers import freeze_tower
from gmdf_hf.training.inner_optimizer import ExpertAdam, ExpertSGD
from gmdf_hf.training.losses import alignment_loss
from gmdf_hf.training.meta import inner_loss, keep_experts, outer_losses, update_experts
from tests.conftest import DIL_VARIANTS, PROMPT_IDS, tiny_model
from tests.training.meta_iteration import BETA, step, updated


def test_parts_of_an_episode(episode):
    assert episode.domain_ids[episode.source].tolist() == [0] * 4 + [2] * 4
    assert episode.domain_ids[episode.target].tolist() == [1] * 4
    assert episode.domains == (0, 2, 1)
    assert episode.source_domains == (0, 2)
    assert episode.weights.tolist() == [0.25] * 12


@pytest.mark.parametrize("inner", ["sgd", "adam"])
@pytest.mark.parametrize("dil", DIL_VARIANTS)
def test_batched_inner_step_equals_the_literal_loop(episode, dil, inner):
    """Algorithm 1: for each meta-train domain, evaluate its loss and update theta_E (decision D10).

    Three iterations hold out different domains, so that the domains have different step counts.
    """
    batched, literal = tiny_model(dil=dil).double(), tiny_model(dil=dil).double()
    optimizer = ExpertSGD(BETA) if inner == "sgd" else ExpertAdam(1e-3)
    optimizer.prepare(batched.expert_parameters())
    # A PyTorch optimizer for each domain, on copies of its rows.
    rows = {n: [p.detach()[n].clone() for p in literal.expert_parameters().values()] for n in range(3)}
    make = (lambda p: torch.optim.SGD(p, lr=BETA)) if inner == "sgd" else (lambda p: torch.optim.Adam(p, lr=1e-3))
    optimizers = {n: make([torch.nn.Parameter(row) for row in rows[n]]) for n in range(3)}
    images = episode.pixel_values.double()
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        domain_ids = torch.tensor(order).repeat_interleave(4)
        one = Episode.of(images, episode.labels, domain_ids)
        loss, _ = inner_loss(batched, one)
        keep_experts(batched, update_experts(batched, loss, optimizer, one.source_domains)[0])
        total, experts = 0.0, literal.expert_parameters()
        for domain in order[:2]:
            chosen = domain_ids == domain
            output = literal(images[chosen], domain_ids=domain_ids[chosen])
            domain_loss = cross_entropy(output.logits, episode.labels[chosen])
            total += domain_loss.item()
            gradients = torch.autograd.grad(domain_loss, list(experts.values()))
            copies = optimizers[domain].param_groups[0]["params"]
            for copy, gradient in zip(copies, gradients, strict=True):
                copy.grad = gradient[domain]
            optimizers[domain].step()
            with torch.no_grad():
                for parameter, copy in zip(experts.values(), copies, strict=True):
                    parameter[domain] = copy
        assert loss.item() == pytest.approx(total, rel=1e-6)
        for (name, ours), expected in zip(batched.named_parameters(), literal.parameters(), strict=True):
            torch.testing.assert_close(ours, expected, msg=name, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("but_layer_norms", [False, True])
def test_a_frozen_tower_is_left_alone_and_the_rest_learns_as_before(episode, tokenizer, but_layer_norms):
    whole, frozen = tiny_model(), tiny_model()
    freeze_tower(frozen, but_layer_norms)
    for model in (whole, frozen):
        step(model, episode, tokenizer, source_weight=1.0)
    kept = {
        name
        for name in whole.shared_parameters()
        if not name.startswith("vision_model.") or (but_layer_norms and re.search("layer_?norm|layrnorm", name))
    }
    assert set(frozen.shared_parameters()) == kept
    assert any(name.startswith("vision_model.") for name in kept) == but_layer_norms
    for (name, ours), expected in zip(frozen.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)  # theta_E' too
        if name in kept and expected.grad is not None:
            torch.testing.assert_close(ours.grad, expected.grad, msg=name)
        else:
            assert ours.grad is None, name


def test_inner_step_moves_the_source_experts_and_nothing_else(episode):
    model = tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    keep_experts(model, updated(model, episode))
    experts = model.expert_parameters()
    for name, parameter in model.named_parameters():
        if name not in experts:
            assert torch.equal(parameter, before[name]), name
            assert parameter.grad is None, name
        else:  # the first dimension of every expert parameter is the domain
            assert torch.equal(parameter[1], before[name][1]), f"{name}: the meta-test domain's expert moved"
            for domain in (0, 2):
                assert not torch.equal(parameter[domain], before[name][domain]), f"{name} of domain {domain}"


@pytest.mark.parametrize("dil", DIL_VARIANTS)
def test_every_expert_parameter_moves_from_its_initial_zero(episode, dil, clip_folder):
    """ReZero: alpha changes in the first step, its factor in the second, the inputs of that factor in the third."""
    model = GMDFModel.from_clip(
        clip_folder, ["a", "b", "c"], dil=dil, prompt_ids=PROMPT_IDS, prompt_size=8, expert_bottleneck_size=8
    ).double()  # the first steps are too small for single precision
    before = {name: p.clone() for name, p in model.expert_parameters().items()}
    for _ in range(4):
        images = Episode.of(episode.pixel_values.double(), episode.labels, episode.domain_ids)
        keep_experts(model, updated(model, images))
    for name, parameter in model.expert_parameters().items():
        for domain in (0, 2):
            assert not torch.equal(parameter[domain], before[name][domain]), f"{name} of domain {domain}"


def test_outer_step_moves_every_shared_parameter_and_nothing_else(episode, tokenizer):
    model = tiny_model().train()
    optimizer = torch.optim.Adam(model.shared_parameters().values(), lr=1e-3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    _, embeds = inner_loss(model, episode)
    losses, _ = outer_losses(model, episode, embeds.detach(), tokenizer, Alignment(3, 4, 16, 0))
    sum(losses.values()).backward(inputs=list(model.shared_parameters().values()))
    optimizer.step()
    shared = model.shared_parameters()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is (name not in shared), name


def test_outer_losses_are_those_of_the_formulas(episode, tokenizer):
    model = tiny_model()
    _, embeds = inner_loss(model, episode)
    losses, _ = outer_losses(model, episode, embeds.detach(), tokenizer, Alignment(3, 4, 16, 0))
    target, labels = episode.pixel_values[8:], episode.labels[8:]
    clean = model(target, active_experts=[0, 2])  # decision D3: without the meta-test domain's own expert
    torch.testing.assert_close(losses["classification"], cross_entropy(clean.logits, labels), atol=1e-5, rtol=1e-5)
    expected = alignment_loss([embeds[:4], embeds[4:]], clean.image_embeds)
    torch.testing.assert_close(losses["alignment"], expected, atol=1e-5, rtol=1e-4)
    mask = episode.mask
    masked = model(target, bool_masked_pos=mask, active_experts=[0, 2])
    codes = cross_entropy(masked.mim_code_logits, tokenizer.encode(target)[mask])
    pixels = l1_loss(masked.mim_pixels, patchify(target, 8)[mask])
    torch.testing.assert_close(losses["masked_image"], codes + pixels, atol=1e-5, rtol=1e-4)


def test_outer_step_can_use_all_experts_and_leave_losses_out(episode):
    model = tiny_model()
    _, embeds = inner_loss(model, episode)
    losses, _ = outer_losses(model, episode, embeds, None, None, all_experts=True)
    assert losses.keys() == {"classification"}
    expected = cross_entropy(model(episode.pixel_values[8:]).logits, episode.labels[8:])
    torch.testing.assert_close(losses["classification"], expected)


def test_masked_image_loss_reads_hidden_patches_only(episode, tokenizer):
    """Changing visible pixels may change features, but not the targets of the losses."""
    model = tiny_model()
    mask, target = episode.mask, episode.pixel_values[8:]
    _, embeds = inner_loss(model, episode)
    read = {}

    def spy(code_logits, pixels, codes, patches):
        read.update(codes=codes, patches=patches, rows=len(code_logits), pixel_rows=len(pixels))
        return code_logits.sum()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gmdf_hf.training.meta.masked_image_loss", spy)
        outer_losses(model, episode, embeds, tokenizer, None)
    hidden = int(mask.sum())
    assert read["rows"] == read["pixel_rows"] == hidden == 4 * 3
    assert torch.equal(read["patches"], patchify(target, 8)[mask])
    assert torch.equal(read["codes"], tokenizer.encode(target)[mask])


def test_a_scaled_loss_gives_the_same_update_and_an_overflow_none(episode):
    """The inner step supports a gradient scaler for half precision."""
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.expert_parameters().items()}
    plain = updated(model, episode)
    scaled = updated(model, episode, scale=torch.tensor(1024.0))
    for name in plain:
        torch.testing.assert_close(plain[name], scaled[name], atol=1e-6, rtol=1e-4)
    loss = inner_loss(model, episode)[0] * torch.inf
    overflown, finite = update_experts(model, loss, ExpertSGD(BETA), [0, 2], scale=torch.tensor(1024.0))
    assert not finite
    for name in overflown:
        assert torch.equal(overflown[name], before[name]), name


@pytest.mark.parametrize("masked", [True, False])
def test_source_images_meet_the_aggregated_route_in_the_outer_step(episode, tokenizer, masked):
    """Decision D16: their loss is the mean over the domains, and leaves the meta-test losses as they are."""
    model = tiny_model()
    _, embeds = inner_loss(model, episode)
    settings = embeds.detach(), tokenizer if masked else None, Alignment(3, 4, 16, 0)
    losses, _ = outer_losses(model, episode, *settings, with_sources=True)
    without, _ = outer_losses(model, episode, *settings)
    rows = {"a": slice(0, 4), "c": slice(4, 8)}
    of_domains = [
        cross_entropy(model(episode.pixel_values[four], active_experts=[0, 2]).logits, episode.labels[four])
        for four in rows.values()
    ]
    torch.testing.assert_close(losses.pop("aggregated_source"), sum(of_domains) / 2, atol=1e-5, rtol=1e-5)
    assert losses.keys() == without.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, without[name], atol=1e-5, rtol=1e-4, msg=name)


def test_source_weight_adds_that_loss_to_the_objective_of_theta_o(episode):
    both, literal, sources = tiny_model(), tiny_model(), tiny_model()
    options = {"alignment_weight": 0.0, "mim_weight": 0.0}
    step(both, episode, None, source_weight=0.5, **options)
    step(literal, episode, None, **options)
    keep_experts(sources, updated(sources, episode))
    outer_losses(sources, episode, torch.empty(0, 16), None, None, with_sources=True)[0]["aggregated_source"].backward()
    ours, alone = literal.shared_parameters(), sources.shared_parameters()
    for name, parameter in both.shared_parameters().items():
        if parameter.grad is not None:
            torch.testing.assert_close(
                parameter.grad, ours[name].grad + 0.5 * alone[name].grad, atol=1e-5, rtol=1e-4, msg=name
            )
