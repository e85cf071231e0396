"""RECCE's graph reasoning, attention and losses by loops."""

import pytest
import torch

from gmdf_hf.modeling.detectors.recce import RECCE, GraphReasoning, RECCEConfig, metric_loss

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model() -> RECCE:
    torch.manual_seed(0)
    return RECCE(RECCEConfig(image_size=64, width=0.0625)).eval()


@torch.no_grad()
@pytest.mark.parametrize("ratio", [2, 4])
def test_graph_reasoning_vertex_by_vertex(ratio):
    torch.manual_seed(0)
    module = GraphReasoning(4, 3, ratio)
    encoded, decoded = torch.randn(1, 4, 2, 3), torch.randn(1, 3, 2 * ratio, 3 * ratio)
    found = module(encoded, decoded)[0]
    a, b, w, c = (conv.weight[:, :, 0, 0] for conv in (module.vertex, module.neighbour, module.score, module.value))
    for i in range(2):
        for j in range(3):
            places = [(i * ratio + k, j * ratio + m) for k in range(ratio) for m in range(ratio)]
            neighbours = [decoded[0, :, row, column] for row, column in places]
            vertex = a @ encoded[0, :, i, j]
            scores = torch.cat([w @ (vertex + b @ u + module.neighbour.bias).clamp(min=0) for u in neighbours])
            shares = scores.exp() / scores.exp().sum()
            expected = sum(share * (c @ u + module.value.bias) for share, u in zip(shares, neighbours, strict=True))
            torch.testing.assert_close(found[:, i, j], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_metric_loss_pair_by_pair():
    labels = torch.tensor([0, 1, 0, 0, 1])
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))

    def distance(i: int, j: int) -> float:
        return float(1 - torch.cosine_similarity(features[i], features[j], dim=0)) / 2

    reals, fakes = [0, 2, 3], [1, 4]
    near = [distance(i, j) for i in reals for j in reals if i != j]
    far = [distance(i, j) for i in reals for j in fakes]
    expected = sum(near) / len(near) - sum(far) / len(far)
    assert float(metric_loss(features, labels)[labels == 0].mean()) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_only_reals_are_reconstructed():
    detector, labels = model(), torch.tensor([0, 1, 1, 0])
    output = detector.classify(IMAGES)
    losses = detector.auxiliary_losses(output, IMAGES, labels, torch.zeros(4, dtype=torch.long))
    missed = [float((output.reconstruction[i] - IMAGES[i]).abs().mean()) for i in (0, 3)]
    assert float(losses["reconstruction"].mean()) == pytest.approx(0.1 * sum(missed) / 2, rel=1e-4)
    assert not losses["reconstruction"][1:3].any() and not losses["metric"][1:3].any()
    of_stages = [metric_loss(features, labels)[labels == 0].mean() for features in output.features]
    assert len(of_stages) == 3
    assert float(losses["metric"].mean()) == pytest.approx(0.1 * float(sum(of_stages)), rel=1e-4)


@torch.no_grad()
def test_attention_stresses_where_the_reconstruction_fails():
    """With one image region changed after the decoder's view, the attention there is another one."""
    detector = model()
    detector.attention.weight.fill_(1.0)
    detector.attention.bias.zero_()
    seen = []
    detector.attention.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    output = detector.classify(IMAGES)
    missed = (output.reconstruction - IMAGES).abs()
    inputs, attention = seen[0]
    side = inputs.shape[-1]
    torch.testing.assert_close(inputs, torch.nn.functional.interpolate(missed, size=(side, side), mode="bilinear"))
    for i in range(side):
        for j in range(side):
            window = inputs[0, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            assert float(attention[0, 0, i, j]) == pytest.approx(float(window.sum()), rel=1e-4)


@torch.no_grad()
def test_the_modules_stand_where_the_authors_have_them():
    detector, seen = model(), []
    for number, block in enumerate(detector.network.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: seen.append(number))
    for name in ("decoder.0", "graphs.0", "attention"):
        detector.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    detector.classify(IMAGES)
    assert seen == [1, 2, 3, 4, "decoder.0", 5, 6, 7, "graphs.0", 8, "attention", 9, 10, 11, 12]


def test_noise_is_for_training_alone():
    detector = model()
    with torch.no_grad():
        assert torch.equal(detector(IMAGES).logits, detector(IMAGES).logits)
        detector.train()
        seen = [detector.classify(IMAGES).features[0] for _ in range(2)]
    assert not torch.equal(*seen)
