import re

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy, l1_loss

from gmdf_hf import GMDFModel
from gmdf_hf.data.episodes import Episode
from gmdf_hf.data.patches import draw_mask, patchify
from gmdf_hf.modeling.configuration_gmdf import DIL_VARIANTS
from gmdf_hf.training.classifiers import freeze_tower
from gmdf_hf.training.image_tokenizer import GMDFImageTokenizer, GMDFImageTokenizerConfig
from gmdf_hf.training.losses import alignment_loss
from gmdf_hf.training.meta import MetaOptions, inner_loss, keep_experts, meta_step, outer_losses, update_experts
from tests.conftest import PROMPT_IDS, tiny_model

BETA = 0.1


@pytest.fixture
def episode():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(12, 3, 32, 32, generator=generator)
    return Episode.of(
        images,
        torch.tensor([0, 0, 1, 1] * 3),
        torch.tensor([0] * 4 + [2] * 4 + [1] * 4),
        mask=draw_mask(4, 4, 0.2, generator=torch.Generator().manual_seed(5)),
    )


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    config = GMDFImageTokenizerConfig(image_size=32, patch_size=8, hidden_size=16, codebook_size=20)
    return GMDFImageTokenizer(config).eval()


def test_parts_of_an_episode(episode):
    assert episode.domain_ids[episode.source].tolist() == [0] * 4 + [2] * 4
    assert episode.domain_ids[episode.target].tolist() == [1] * 4
    assert episode.domains == (0, 2, 1)
    assert episode.source_domains == (0, 2)
    assert episode.weights.tolist() == [0.25] * 12


@pytest.mark.parametrize("dil", DIL_VARIANTS)
def test_batched_inner_step_equals_the_literal_loop(episode, dil):
    """Algorithm 1: for each meta-train domain, evaluate its loss and update theta_E (decision D10)."""
    batched, literal = tiny_model(dil=dil).double(), tiny_model(dil=dil).double()
    images = episode.pixel_values.double()
    loss, _ = inner_loss(batched, Episode.of(images, episode.labels, episode.domain_ids))
    keep_experts(batched, update_experts(batched, loss, BETA))

    total = 0.0
    for domain in (0, 2):
        rows = (episode.domain_ids == domain).nonzero().flatten()
        output = literal(images[rows], domain_ids=episode.domain_ids[rows])
        domain_loss = cross_entropy(output.logits, episode.labels[rows])
        total += domain_loss.item()
        names, parameters = zip(*literal.named_parameters(), strict=True)
        gradients = torch.autograd.grad(domain_loss, [p for p in parameters if p.requires_grad], allow_unused=True)
        trained = [name for name, p in zip(names, parameters, strict=True) if p.requires_grad]
        experts = literal.expert_parameters()
        with torch.no_grad():
            for name, gradient in zip(trained, gradients, strict=True):
                if name in experts:
                    experts[name] -= BETA * gradient
    assert loss.item() == pytest.approx(total, rel=1e-6)
    for (name, ours), expected in zip(batched.named_parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, msg=name, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("but_layer_norms", [False, True])
def test_a_frozen_tower_is_left_alone_and_the_rest_learns_as_before(episode, tokenizer, but_layer_norms):
    whole, frozen = tiny_model(), tiny_model()
    freeze_tower(frozen, but_layer_norms)
    for model in (whole, frozen):
        meta_step(model, episode, Accelerator(), tokenizer, MetaOptions(BETA, source_weight=1.0))
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
    loss, _ = inner_loss(model, episode)
    keep_experts(model, update_experts(model, loss, BETA))
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
    """ReZero: alpha moves in the first step, what it multiplies in the second, what that was made from in the third."""
    model = GMDFModel.from_clip(
        clip_folder, ["a", "b", "c"], dil=dil, prompt_ids=PROMPT_IDS, prompt_size=8, expert_bottleneck_size=8
    ).double()  # the first of these steps are too small for single precision
    before = {name: p.clone() for name, p in model.expert_parameters().items()}
    for _ in range(4):
        images = Episode.of(episode.pixel_values.double(), episode.labels, episode.domain_ids)
        loss, _ = inner_loss(model, images)
        keep_experts(model, update_experts(model, loss, BETA))
    for name, parameter in model.expert_parameters().items():
        for domain in (0, 2):
            assert not torch.equal(parameter[domain], before[name][domain]), f"{name} of domain {domain}"


def test_outer_step_moves_every_shared_parameter_and_nothing_else(episode, tokenizer):
    model = tiny_model().train()
    optimizer = torch.optim.Adam(model.shared_parameters().values(), lr=1e-3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    _, embeds = inner_loss(model, episode)
    losses = outer_losses(model, episode, embeds.detach(), tokenizer)
    sum(losses.values()).backward(inputs=list(model.shared_parameters().values()))
    optimizer.step()
    shared = model.shared_parameters()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is (name not in shared), name


def test_outer_losses_are_those_of_the_formulas(episode, tokenizer):
    model = tiny_model()
    _, embeds = inner_loss(model, episode)
    losses = outer_losses(model, episode, embeds.detach(), tokenizer)
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
    losses = outer_losses(model, episode, embeds, None, align=False, all_experts=True)
    assert losses.keys() == {"classification"}
    expected = cross_entropy(model(episode.pixel_values[8:]).logits, episode.labels[8:])
    torch.testing.assert_close(losses["classification"], expected)


def test_masked_image_loss_reads_hidden_patches_only(episode, tokenizer):
    """Changing the pixels that are not hidden may change features, but never the targets of the losses."""
    model = tiny_model()
    mask, target = episode.mask, episode.pixel_values[8:]
    _, embeds = inner_loss(model, episode)
    read = {}

    def spy(code_logits, pixels, codes, patches):
        read.update(codes=codes, patches=patches, rows=len(code_logits), pixel_rows=len(pixels))
        return code_logits.sum()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gmdf_hf.training.meta.masked_image_loss", spy)
        outer_losses(model, episode, embeds, tokenizer)
    hidden = int(mask.sum())
    assert read["rows"] == read["pixel_rows"] == hidden == 4 * 3
    assert torch.equal(read["patches"], patchify(target, 8)[mask])
    assert torch.equal(read["codes"], tokenizer.encode(target)[mask])


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
    """Inner loss (e o - 1)^2 / 2 gives e' = e - b (e o - 1) o; outer loss (e' o)^2 has the slope written below."""
    toy = Toy()
    e, o = toy.e.item(), toy.o.item()
    updated = update_experts(toy, (toy.e * toy.o - 1) ** 2 / 2, BETA, second_order=True)["e"]
    new = e - BETA * (e * o - 1) * o
    assert updated.item() == pytest.approx(new)
    slope = torch.autograd.grad((updated * toy.o) ** 2, toy.o)[0].item()
    through_the_update = -BETA * (2 * e * o - 1)  # d e' / d o
    assert slope == pytest.approx(2 * new * o * (new + o * through_the_update))
    first = update_experts(toy, (toy.e * toy.o - 1) ** 2 / 2, BETA)["e"].detach()
    assert torch.autograd.grad((first * toy.o) ** 2, toy.o)[0].item() == pytest.approx(2 * new**2 * o)


@pytest.mark.parametrize("order", ["second", "first"])
def test_second_order_equals_finite_differences_and_first_order_does_not(episode, tokenizer, order):
    """The slope of all three losses along a random direction of theta_O, through the update of theta_E."""
    model, tokenizer = tiny_model().double(), tokenizer.double()
    images = Episode.of(episode.pixel_values.double(), episode.labels, episode.domain_ids, episode.mask)
    generator = torch.Generator().manual_seed(3)
    shared = model.shared_parameters()
    direction = {n: torch.randn(p.shape, generator=generator, dtype=torch.double) for n, p in shared.items()}
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def step(distance: float, second_order: bool) -> float:
        model.zero_grad()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name] + distance * direction.get(name, 0))
        options = MetaOptions(1.0, align_both=True, second_order=second_order)
        losses = meta_step(model, images, Accelerator(), tokenizer, options)
        return sum(losses[name].item() for name in ("classification", "alignment", "masked_image"))

    width = 1e-6
    expected = (step(width, False) - step(-width, False)) / (2 * width)
    step(0.0, second_order=order == "second")
    slope = sum((parameter.grad * direction[name]).sum().item() for name, parameter in shared.items())
    if order == "second":
        assert slope == pytest.approx(expected, rel=1e-5)
    else:  # else this test could not tell the two apart
        assert slope != pytest.approx(expected, rel=1e-3)


def test_second_order_moves_the_experts_as_first_order_does(episode, tokenizer):
    first, second = tiny_model(), tiny_model()
    for model, order in ((first, False), (second, True)):
        meta_step(model, episode, Accelerator(), tokenizer, MetaOptions(BETA, second_order=order))
    for (name, ours), theirs in zip(
        first.expert_parameters().items(), second.expert_parameters().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_a_scaled_loss_gives_the_same_update_and_an_overflow_none(episode):
    """What a gradient scaler asks of the inner step in half precision."""
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.expert_parameters().items()}
    plain = update_experts(model, inner_loss(model, episode)[0], BETA)
    scaled = update_experts(model, inner_loss(model, episode)[0], BETA, shared_weight=1.0, scale=torch.tensor(1024.0))
    for name in plain:
        torch.testing.assert_close(plain[name], scaled[name], atol=1e-6, rtol=1e-4)
    gradients = [parameter.grad for parameter in model.shared_parameters().values() if parameter.grad is not None]
    model.zero_grad()
    update_experts(model, inner_loss(model, episode)[0], BETA, shared_weight=1.0)
    still_scaled = [parameter.grad for parameter in model.shared_parameters().values() if parameter.grad is not None]
    for large, small in zip(gradients, still_scaled, strict=True):
        torch.testing.assert_close(large, 1024 * small, atol=1e-3, rtol=1e-3)
    overflown = update_experts(model, inner_loss(model, episode)[0] * torch.inf, BETA, scale=torch.tensor(1024.0))
    for name in overflown:
        assert torch.equal(overflown[name], before[name]), name


def test_source_loss_is_added_to_the_shared_gradient(episode):
    """Decision D16: MLDG's objective is the meta-train loss before the update plus the meta-test loss after it."""
    model = tiny_model()
    loss, _ = inner_loss(model, episode)
    shared = model.shared_parameters()
    gradients = torch.autograd.grad(loss, shared.values(), allow_unused=True, retain_graph=True)
    expected = dict(zip(shared, gradients, strict=True))
    update_experts(model, loss, BETA, shared_weight=0.5)
    for name, parameter in shared.items():
        if expected[name] is None:  # the masked-image head: no part of the meta-train loss
            assert name.startswith("mim_head."), name
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, 0.5 * expected[name], msg=name)
