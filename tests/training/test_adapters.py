"""Single domain experts: add, train, save, load."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from gmdf_hf import GMDFConfig, GMDFModel
from gmdf_hf.training.adapters import add_domain, load_expert, save_expert, train_only_domain
from tests.conftest import redraw_zeros, tiny_model

DIL = ("affine", "affine_bias", "cross_attention")


def known(model, pixel_values):
    with torch.no_grad():
        return [model(pixel_values, domain_ids=torch.full((5,), n)).logits for n in range(3)]


def train_new(model, domain, pixel_values, steps=3, aggregated=False):
    """A few steps of `add_domain`; on the aggregated route every expert would get a gradient."""
    parameters = train_only_domain(model, domain)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    ids = None if aggregated else torch.full((5,), model.domain_id(domain))
    labels = torch.tensor([0, 1, 0, 1, 1])
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(pixel_values, domain_ids=ids).logits, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dil", DIL)
@pytest.mark.parametrize("aggregated", [False, True])
def test_old_domains_do_not_change(pixel_values, dil, aggregated):
    model = tiny_model(dil=dil)
    before, weights = known(model, pixel_values), {n: p.detach().clone() for n, p in model.named_parameters()}
    assert add_domain(model, "d") == 3
    assert model.config.domains == ["a", "b", "c", "d"]
    # Their weights are bit-identical (below); products over four experts may round differently from those over three.
    torch.testing.assert_close(known(model, pixel_values), before, rtol=1e-5, atol=1e-6)
    losses = train_new(model, "d", pixel_values, steps=20, aggregated=aggregated)
    assert losses[-1] < losses[0]
    # Their weights are bit-identical (below); products over four experts may round differently from those over three.
    torch.testing.assert_close(known(model, pixel_values), before, rtol=1e-5, atol=1e-6)
    experts = model.expert_parameters()
    changed = set()
    for name, parameter in model.named_parameters():
        old = weights[name]
        assert torch.equal(parameter[:3] if name in experts else parameter, old), name
        if name in experts and parameter[3].any():
            changed.add(name.rsplit(".", 1)[-1])
    assert {"alpha", "up_weight", "domain_prompts", "shift_weight"} <= changed


def test_one_domain_after_the_other(pixel_values):
    model = tiny_model()
    for name in ("d", "e"):
        before = {n: p.detach().clone() for n, p in model.expert_parameters().items()}
        add_domain(model, name)
        losses = train_new(model, name, pixel_values, steps=20)
        assert losses[-1] < losses[0]
        for n, p in model.expert_parameters().items():
            assert torch.equal(p[: len(before[n])], before[n]), n


def test_a_new_expert_starts_at_zero_effect(pixel_values):
    model = tiny_model()
    redraw_zeros(model)
    add_domain(model, "d")
    for layer in model.vision_model.encoder.layers:
        assert layer.experts.alpha[3] == 0
        assert layer.experts.up_weight[3].any()
    assert model.domain_prompts[3].any()
    output = model(pixel_values, output_expert_weights=True)
    assert all(not weights[:, 3].any() for weights in output.expert_weights)


def test_a_grown_model_is_saved_and_loaded_like_any_other(pixel_values, tmp_path):
    model = tiny_model()
    add_domain(model, "d")
    train_new(model, "d", pixel_values)
    model.save_pretrained(tmp_path)
    again = GMDFModel.from_pretrained(tmp_path)
    assert again.config.domains == ["a", "b", "c", "d"]
    assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("dil", DIL)
def test_an_expert_plugs_into_its_base(pixel_values, tmp_path, dil):
    tiny_model(dil=dil).save_pretrained(tmp_path / "base", slim=True)
    grown = GMDFModel.from_pretrained(tmp_path / "base")
    add_domain(grown, "d")
    train_new(grown, "d", pixel_values)
    save_expert(grown, "d", tmp_path / "expert")
    assert {path.name for path in (tmp_path / "expert").iterdir()} == {"expert.safetensors", "expert.json"}
    base = GMDFModel.from_pretrained(tmp_path / "base")
    assert load_expert(base, tmp_path / "expert") == 3
    ids = torch.full((5,), 3)
    assert torch.equal(base(pixel_values, domain_ids=ids).logits, grown(pixel_values, domain_ids=ids).logits)
    assert torch.equal(base(pixel_values).logits, grown(pixel_values).logits)
    described = json.loads((tmp_path / "expert" / "expert.json").read_text())
    assert described["base"]["name"] == "base"  # without the parent path
    with pytest.raises(ValueError, match="needs a new name, found 'd'"):
        load_expert(base, tmp_path / "expert")


def test_an_expert_of_another_base_or_size_is_refused(tmp_path, pixel_values):
    model = tiny_model()
    save_expert(model, "b", tmp_path / "b")
    other = tiny_model()
    with torch.no_grad():
        other.visual_projection.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"was trained on another base: expected .* with SHA-256 .*, found "):
        load_expert(other, tmp_path / "b")
    torch.manual_seed(0)
    wide = tiny_model(expert_bottleneck_size=4)
    for source, target in zip(model.parameters(), wide.parameters(), strict=True):
        if source.shape == target.shape:
            target.data.copy_(source.data)
    with pytest.raises(ValueError, match=r"does not fit: expected .*down_bias of shape \(4,\), found \(8,\)"):
        load_expert(wide, tmp_path / "b")
    assert wide.config.domains == ["a", "b", "c"]  # unchanged after the error
    with pytest.raises(ValueError, match="knows the domains"):
        save_expert(model, "z", tmp_path / "z")
    with pytest.raises(ValueError, match="needs a new name, found 'a'"):
        add_domain(model, "a")


@pytest.mark.slow
@pytest.mark.parametrize("dil", DIL)
def test_an_expert_of_vit_b_16_is_below_10_megabytes(tmp_path, dil):
    torch.manual_seed(0)
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = GMDFConfig(
        vision_config=vision | {"patch_size": 16}, domains=["a", "b", "c"], slim=True, codebook_size=8, dil=dil
    )
    model = GMDFModel(config).eval()
    redraw_zeros(model)
    pixels = torch.randn(2, 3, 224, 224)
    ids = torch.tensor([0, 2])
    with torch.no_grad():
        before = model(pixels, domain_ids=ids).logits
        add_domain(model, "d")
        assert torch.equal(model(pixels, domain_ids=ids).logits, before)
    save_expert(model, "d", tmp_path)
    size = (tmp_path / "expert.safetensors").stat().st_size
    assert size < (15e6 if dil == "affine_bias" else 10e6), size


@pytest.mark.parametrize("text", ["{}", "[1]", '{"domain": "d", "base": {}}', "[" * 100_000, '{"domain": "d"}'])
def test_a_damaged_description_of_an_expert_is_refused(tmp_path, text):
    model = tiny_model()
    save_expert(model, "b", tmp_path)
    (tmp_path / "expert.json").write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        load_expert(model, tmp_path)


@pytest.mark.parametrize("change", [lambda row: row * float("nan"), lambda row: row.to(torch.int8)])
def test_weights_of_an_expert_are_finite_numbers(tmp_path, change):
    model = tiny_model()
    save_expert(model, "b", tmp_path)
    rows = load_file(tmp_path / "expert.safetensors")
    rows["domain_prompts"] = change(rows["domain_prompts"])
    save_file(rows, tmp_path / "expert.safetensors")
    with pytest.raises(ValueError, match="no finite floating-point numbers in domain_prompts"):
        load_expert(model, tmp_path)
