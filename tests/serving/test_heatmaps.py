import torch

from gmdf_hf.serving.heatmaps import evidence_map, heatmap
from tests.conftest import tiny_model


def test_a_patchs_share_is_what_making_it_a_little_more_average_costs(pixel_values):
    """Comparison with finite differences on the last block's input, one patch at a time."""
    model = tiny_model().double()
    output = model(pixel_values.double(), output_hidden_states=True)
    tokens = output.hidden_states[-2]
    evidence = evidence_map(tokens, output.logits)
    assert evidence.shape == (5, 4, 4)
    layer, tower = model.vision_model.encoder.layers[-1], model.vision_model

    def margin(states):
        pooled = tower.post_layernorm(layer(states, domain_prompts=model.domain_prompts)[:, 0])
        embeds = torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)
        logits = model.logit_scale.exp() * torch.einsum("bp,bcp->bc", embeds, output.text_embeds)
        return logits[:, 1] - logits[:, 0]

    step = 3e-3  # the experts' attention uses single precision for all weight types
    with torch.no_grad():
        for patch in (0, 7, 15):
            less, more = tokens.clone(), tokens.clone()
            own = tokens[:, 1 + patch] - tokens[:, 1:].mean(1)
            less[:, 1 + patch] -= step * own
            more[:, 1 + patch] += step * own
            slope = (margin(more) - margin(less)) / (2 * step)
            torch.testing.assert_close(evidence.flatten(1)[:, patch].double(), slope, rtol=2e-3, atol=1e-5)


def test_heatmap_keeps_sign_and_place():
    evidence = torch.zeros(1, 4, 4)
    evidence[0, 0, 3], evidence[0, 3, 0] = -2.0, 1.0
    shown = heatmap(evidence, 32)[0]
    assert shown.shape == (32, 32)
    assert shown[0, 31] == -1
    assert shown[31, 0] == 0.5
    assert shown[15, 15] == 0
    assert not heatmap(torch.zeros(1, 4, 4), 8).any()
