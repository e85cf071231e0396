import itertools
import math
import re

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy, l1_loss
from transformers import CLIPModel

from gmdf_hf import TINY_CLIP, GMDFModel
from gmdf_hf.data.episodes import Episode
from gmdf_hf.data.patches import draw_mask, patchify
from gmdf_hf.training.alignment import Alignment
from gmdf_hf.training.classifiers import freeze_tower
from gmdf_hf.training.config import TrainConfig
from gmdf_hf.training.image_tokenizer import GMDFImageTokenizer, GMDFImageTokenizerConfig
from gmdf_hf.training.inner_optimizer import ExpertAdam, ExpertSGD
from gmdf_hf.training.losses import alignment_loss
from gmdf_hf.training.meta import inner_loss, keep_experts, outer_losses, update_experts
from gmdf_hf.training.methods.gmdf import GMDF, MetaOptions
from tests.conftest import DIL_VARIANTS, PROMPT_IDS, tiny_model

BETA = 0.1


def step(model, episode, tokenizer, inner=None, **options) -> dict[str, torch.Tensor]:
    """One meta-iteration without the step of the outer optimizer."""
    method = GMDF(inner or ExpertSGD(BETA), MetaOptions(**options), batch_size=4)
    method.prepare(model)
    method.image_tokenizer = tokenizer
    return method.step(model, episode, Accelerator())


def updated(model, episode, inner=None, **options) -> dict[str, torch.Tensor]:
    """theta_E after an inner step."""
    loss, _ = inner_loss(model, episode)
    return update_experts(model, loss, inner or ExpertSGD(BETA), episode.source_domains, **options)[0]


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
    """Inner loss (e o - 1)^2 / 2 gives e' = e - b (e o - 1) o; outer loss (e' o)^2 has the derivative below."""
    toy = Toy()
    e, o = toy.e.item(), toy.o.item()
    loss = (toy.e * toy.o - 1) ** 2 / 2
    updated = update_experts(toy, loss, ExpertSGD(BETA), [0], second_order=True)[0]["e"]
    new = e - BETA * (e * o - 1) * o
    assert updated.item() == pytest.approx(new)
    slope = torch.autograd.grad((updated * toy.o) ** 2, toy.o)[0].item()
    through_the_update = -BETA * (2 * e * o - 1)  # d e' / d o
    assert slope == pytest.approx(2 * new * o * (new + o * through_the_update))
    first = update_experts(toy, (toy.e * toy.o - 1) ** 2 / 2, ExpertSGD(BETA), [0])[0]["e"].detach()
    assert torch.autograd.grad((first * toy.o) ** 2, toy.o)[0].item() == pytest.approx(2 * new**2 * o)


@pytest.mark.parametrize("order", ["second", "first"])
def test_second_order_equals_finite_differences_and_first_order_does_not(episode, tokenizer, order):
    """Directional derivative of the three losses in theta_O, through the update of theta_E."""
    model, tokenizer = tiny_model().double(), tokenizer.double()
    images = Episode.of(episode.pixel_values.double(), episode.labels, episode.domain_ids, episode.mask)
    generator = torch.Generator().manual_seed(3)
    shared = model.shared_parameters()
    direction = {n: torch.randn(p.shape, generator=generator, dtype=torch.double) for n, p in shared.items()}
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def losses_at(distance: float, second_order: bool) -> float:
        model.zero_grad()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name] + distance * direction.get(name, 0))
        options = {"align_both": True, "second_order": second_order}
        losses = step(model, images, tokenizer, ExpertSGD(1.0, max_grad_norm=0.5), **options)
        return sum(losses[name].item() for name in ("classification", "alignment", "masked_image"))

    width = 1e-6
    expected = (losses_at(width, False) - losses_at(-width, False)) / (2 * width)
    losses_at(0.0, second_order=order == "second")
    slope = sum((parameter.grad * direction[name]).sum().item() for name, parameter in shared.items())
    if order == "second":
        assert slope == pytest.approx(expected, rel=1e-5)
    else:  # otherwise the test cannot distinguish the two orders
        assert slope != pytest.approx(expected, rel=1e-3)


def test_second_order_moves_the_experts_as_first_order_does(episode, tokenizer):
    first, second = tiny_model(), tiny_model()
    for model, order in ((first, False), (second, True)):
        step(model, episode, tokenizer, ExpertSGD(BETA), second_order=order)
    for (name, ours), theirs in zip(
        first.expert_parameters().items(), second.expert_parameters().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


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
