from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, CLIPConfig, CLIPModel
from transformers.initialization import no_init_weights

from gmdf_hf import GMDFConfig, GMDFModel
from tests.conftest import DIL_VARIANTS, PROMPT_IDS, TEXT, VISION, tiny_config, tiny_model

ROUTES = [None, torch.tensor([0, 1, 2, 0, 1])]


def assert_is_clip(model: GMDFModel, clip: CLIPModel, prompt_ids, pixel_values, domain_ids) -> None:
    with torch.no_grad():
        expected = clip(input_ids=torch.tensor(prompt_ids), pixel_values=pixel_values)
        output = model(pixel_values, domain_ids=domain_ids)
    torch.testing.assert_close(output.image_embeds, expected.image_embeds, atol=1e-5, rtol=0)
    texts = expected.text_embeds.expand(len(pixel_values), -1, -1)
    torch.testing.assert_close(output.text_embeds, texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.logits, expected.logits_per_image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("domain_ids", ROUTES, ids=["aggregated", "known"])
@pytest.mark.parametrize("dil", DIL_VARIANTS)
def test_a_fresh_model_is_clip(clip_folder, pixel_values, dil, domain_ids):
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    model = GMDFModel.from_clip(clip_folder, ["a", "b", "c"], dil=dil, prompt_ids=PROMPT_IDS)
    assert_is_clip(model, clip, PROMPT_IDS, pixel_values, domain_ids)


@pytest.mark.slow
@pytest.mark.parametrize("dil", DIL_VARIANTS)
def test_a_fresh_vit_b16_is_clip(tmp_path, dil):
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(vision_config={"patch_size": 16})).eval()
    clip.save_pretrained(tmp_path)
    prompt_ids = [[49406, 1125, 49407], [49406, 320, 49407]]
    model = GMDFModel.from_clip(tmp_path, ["a", "b", "c", "d"], dil=dil, prompt_ids=prompt_ids)
    pixel_values = torch.randn(2, 3, 224, 224)
    for domain_ids in (None, torch.tensor([3, 1])):
        assert_is_clip(model, clip, prompt_ids, pixel_values, domain_ids)


def test_images_of_another_size_interpolate_positions(clip_folder):
    model = GMDFModel.from_clip(clip_folder, ["a", "b"], image_size=48, prompt_ids=PROMPT_IDS)
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    images = torch.randn(2, 3, 48, 48)
    expected = clip.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(model(images).image_embeds, expected / expected.norm(dim=-1, keepdim=True))
    assert model.config.vision_config.image_size == 48
    with pytest.raises(ValueError, match="multiple of the patch size 8, found 50"):
        GMDFModel.from_clip(clip_folder, ["a", "b"], image_size=50, prompt_ids=PROMPT_IDS)


@pytest.mark.parametrize("slim", [False, True])
def test_saved_and_loaded_gives_the_same(tmp_path, pixel_values, slim):
    model = tiny_model()
    model.save_pretrained(tmp_path, slim=slim)
    loaded, report = GMDFModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.slim is slim
    for domain_ids in ROUTES:
        assert torch.equal(loaded(pixel_values, domain_ids).logits, model(pixel_values, domain_ids).logits)
    assert model.config.slim is False  # saving in slim form does not change the model in memory
    names = load_file(tmp_path / "model.safetensors").keys()
    assert slim is not any(name.startswith(("text_model.", "text_projection.", "mim_head.")) for name in names)
    for auto_class in (AutoModel, AutoModelForImageClassification):
        assert type(auto_class.from_pretrained(tmp_path)) is GMDFModel


def test_slim_form_says_what_it_lacks(tmp_path, pixel_values):
    tiny_model().save_pretrained(tmp_path, slim=True)
    model = GMDFModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no masked-image head"):
        model(pixel_values, bool_masked_pos=torch.ones(5, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="no text tower"):
        model(pixel_values, prompt_ids=torch.tensor(PROMPT_IDS).expand(5, 2, 3))


def test_loading_on_the_meta_device_initialises_everything(clip_folder):
    """`from_pretrained` builds on the meta device; parameters missing in `_init_weights` stay uninitialised."""
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(
            GMDFModel.from_pretrained(clip_folder, config=tiny_config(dil="affine_bias"), output_loading_info=True)[0]
        )
    first, second = (model.state_dict() for model in models)
    for name, value in first.items():
        assert value.device.type == "cpu"
        assert value.isfinite().all()
        assert torch.equal(value, second[name]), name
    direct = GMDFModel(tiny_config(dil="affine_bias"))
    for name, value in direct.named_parameters():  # the same standard deviation as in direct construction
        spread = value.std(correction=0)
        torch.testing.assert_close(first[name].std(correction=0), spread, atol=0.1, rtol=0.35, msg=name)
    assert torch.equal(models[0].vision_model.embeddings.position_ids, direct.vision_model.embeddings.position_ids)


def test_random_weights_have_clips_spread():
    clip = CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=16)).state_dict()
    model = GMDFModel(tiny_config()).state_dict()
    for name, value in clip.items():
        spread = value.std(correction=0)
        torch.testing.assert_close(model[name].std(correction=0), spread, atol=0.005, rtol=0.3, msg=name)


def test_no_parameter_is_left_uninitialised():
    with no_init_weights():
        model = GMDFModel(tiny_config())
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(float("nan"))
    model.init_weights()
    for name, value in model.named_parameters():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_and_stays_close(tmp_path, pixel_values, dtype):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    half = GMDFModel.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    for domain_ids in ROUTES:
        expected = model(pixel_values, domain_ids).image_embeds
        close = torch.nn.functional.cosine_similarity(half(pixel_values, domain_ids).image_embeds.float(), expected)
        assert close.min() > 0.99


def test_eager_and_sdpa_agree_and_eager_returns_attentions(tmp_path, pixel_values):
    tiny_model().save_pretrained(tmp_path)
    eager = GMDFModel.from_pretrained(tmp_path, attn_implementation="eager")
    sdpa = GMDFModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert sdpa.vision_model.config._attn_implementation == "sdpa"
    output = eager(pixel_values, output_attentions=True)
    torch.testing.assert_close(output.logits, sdpa(pixel_values).logits, atol=1e-4, rtol=1e-5)
    assert [tuple(attention.shape) for attention in output.attentions] == [(5, 4, 17, 17)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(5, 4, 17))


def test_recorded_outputs(pixel_values):
    model = tiny_model()
    output = model(pixel_values, output_hidden_states=True, output_expert_weights=True)
    assert [tuple(hidden.shape) for hidden in output.hidden_states] == [(5, 17, 32)] * 3
    assert [tuple(weights.shape) for weights in output.expert_weights] == [(5, 3)] * 2
    for weights in output.expert_weights:
        torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    restricted = model(pixel_values, active_experts=[2], output_expert_weights=True)
    assert restricted.expert_weights[0].tolist() == [[0, 0, 1]] * 5
    assert model(pixel_values).expert_weights is None
    assert len(model(pixel_values, return_dict=False)) == 3  # logits, image_embeds, text_embeds


@pytest.mark.parametrize("dil", DIL_VARIANTS)
def test_gradient_checkpointing_changes_nothing(pixel_values, dil):
    model = tiny_model(dil=dil).train()
    labels = torch.tensor([0, 1, 0, 1, 1])

    def gradients():
        model.zero_grad()
        model(pixel_values, domain_ids=ROUTES[1], labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    recomputed = gradients()
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("domain_ids", "backend"), zip(ROUTES, ("inductor", "aot_eager"), strict=True), ids=["aggregated", "known"]
)
def test_compiles_without_a_graph_break(pixel_values, domain_ids, backend):
    # Breaks are found before code is generated, which takes most of the time: it is generated for one route.
    compiled = torch.compile(model := tiny_model(), fullgraph=True, backend=backend)
    with torch.no_grad():
        expected = model(pixel_values, domain_ids).logits
        torch.testing.assert_close(compiled(pixel_values, domain_ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_single_known_expert_is_the_aggregated_route_with_it_alone(pixel_values):
    model = tiny_model()
    known = model(pixel_values, domain_ids=torch.full((5,), 1))
    alone = model(pixel_values, active_experts=[1])
    torch.testing.assert_close(known.logits, alone.logits, atol=1e-4, rtol=1e-5)


def test_text_features_of_the_aggregated_route_are_the_normalised_mean(pixel_values):
    model = tiny_model()
    views = torch.stack([model(pixel_values[:1], torch.tensor([n])).text_embeds[0] for n in (0, 2)])
    mean = views.mean(0)
    expected = mean / mean.norm(dim=-1, keepdim=True)
    output = model(pixel_values, active_experts=[0, 2])
    torch.testing.assert_close(output.text_embeds[3], expected)
    cosines = torch.einsum("bp,cp->bc", output.image_embeds, expected)
    torch.testing.assert_close(output.logits, model.logit_scale.exp() * cosines)


def test_class_features_follow_the_text_tower(pixel_values):
    model = tiny_model()
    before = model(pixel_values).logits
    with torch.no_grad():
        model.text_projection.weight.mul_(torch.linspace(-1, 1, 24))
    model.eval()
    assert not torch.allclose(model(pixel_values).logits, before)
    model.text_projection.requires_grad_(True)
    model.train()
    model(pixel_values, labels=torch.tensor([0, 1, 0, 1, 1])).loss.backward()
    assert model.text_projection.weight.grad.any()


def test_captions_give_each_image_its_own_sentences(pixel_values):
    model = tiny_model()
    prompt_ids = torch.tensor([PROMPT_IDS, [[0, 7, 98], [0, 8, 98]]])
    both = model(pixel_values[:2], prompt_ids=prompt_ids)
    torch.testing.assert_close(both.logits[0], model(pixel_values[:1]).logits[0], atol=1e-4, rtol=1e-5)
    assert not torch.allclose(both.text_embeds[0], both.text_embeds[1])


def test_hidden_patches_are_not_seen_and_are_predicted_in_order(pixel_values):
    model = tiny_model()
    mask = torch.zeros(5, 16, dtype=torch.bool)
    mask[:, [3, 7]] = True
    output = model(pixel_values, bool_masked_pos=mask)
    assert output.mim_code_logits.shape == (10, 20)
    assert output.mim_pixels.shape == (10, 3 * 8 * 8)
    changed = pixel_values.clone()
    changed[:, :, :8, 24:] += 1  # patch 3
    torch.testing.assert_close(model(changed, bool_masked_pos=mask).mim_pixels, output.mim_pixels)
    assert not torch.allclose(model(changed, bool_masked_pos=~mask & (torch.arange(16) != 3)).logits, output.logits)
    one = model(pixel_values[2:3], bool_masked_pos=mask[2:3])
    torch.testing.assert_close(one.mim_pixels, output.mim_pixels[4:6], atol=1e-5, rtol=1e-4)


def test_wrong_arguments_are_named(pixel_values):
    model = tiny_model()
    for arguments, message in (
        ({"domain_ids": torch.tensor([0, 1])}, r"shape \(5,\), found \(2,\)"),
        ({"domain_ids": torch.tensor([0, 1, 2, 3, 0])}, r"must lie in \[0, 3\).*found 0 to 3"),
        ({"active_experts": [0, 0]}, "distinct indices"),
        ({"active_experts": []}, "at least one"),
        ({"active_experts": [0], "domain_ids": ROUTES[1]}, "leave out `domain_ids`"),
        ({"bool_masked_pos": torch.ones(5, 4, dtype=torch.bool)}, r"shape \(5, 16\), found \(5, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(pixel_values, **arguments)
    with pytest.raises(ValueError, match=r"\(batch, 3, 32, 32\), found \(5, 3, 16, 32\)"):
        model(pixel_values[:, :, :16])
    assert model.domain_id("b") == 1
    with pytest.raises(ValueError, match=r"knows the domains \['a', 'b', 'c'\], found 'z'"):
        model.domain_id("z")


def test_a_checkpoint_that_is_no_clip_is_refused(tmp_path, clip_folder):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs a CLIP checkpoint, found model type 'gmdf'"):
        GMDFModel.from_clip(tmp_path, ["a", "b"])
    broken = tmp_path / "broken"
    clip = CLIPModel.from_pretrained(clip_folder)
    clip.save_pretrained(
        broken, state_dict={k: v for k, v in clip.state_dict().items() if "visual_projection" not in k}
    )
    with pytest.raises(ValueError, match=r"missing \['visual_projection.weight'\]"):
        GMDFModel.from_clip(broken, ["a", "b"], prompt_ids=PROMPT_IDS)


def test_labels_give_the_cross_entropy(pixel_values):
    model, labels = tiny_model(), torch.tensor([0, 1, 0, 1, 1])
    output = model(pixel_values, labels=labels)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))


@pytest.mark.parametrize("source", ["new", "clip", "saved"])
def test_parameter_groups_split_all_that_trains(source, clip_folder, tmp_path):
    model = tiny_model()
    if source == "clip":
        model = GMDFModel.from_clip(clip_folder, ["a", "b"], prompt_ids=PROMPT_IDS)
    elif source == "saved":
        model.save_pretrained(tmp_path)
        model = GMDFModel.from_pretrained(tmp_path)
    experts, shared = model.expert_parameters(), model.shared_parameters()
    assert not experts.keys() & shared.keys()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name, _ in model.named_parameters() if name.startswith(("text_model.", "text_projection."))
    }
    assert experts.keys() | shared.keys() | frozen == {name for name, _ in model.named_parameters()}
    assert {"domain_prompts", "text_affine.gain_weight", "vision_model.encoder.layers.1.experts.alpha"} <= set(experts)
    assert {"visual_projection.weight", "mim_head.mask_token", "vision_model.post_layernorm.bias"} <= set(shared)


@pytest.mark.parametrize(
    ("domains", "slim", "megabytes"), [(4, False, 657), (4, True, 375), (3, False, 649), (3, True, 368)]
)
def test_sizes_in_the_readme(domains, slim, megabytes):
    names = [str(number) for number in range(domains)]
    with torch.device("meta"):
        config = GMDFConfig(vision_config={"patch_size": 16}, domains=names, codebook_size=8192, slim=slim)
        state = GMDFModel(config).state_dict()
    assert round(sum(4 * value.numel() for value in state.values()) / 1e6) == megabytes
    assert str(megabytes) in (Path(__file__).parents[2] / "README.md").read_text()
