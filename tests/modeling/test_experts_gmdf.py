import itertools

import pytest
import torch
from torch.nn.functional import layer_norm

from gmdf_hf.modeling import experts_gmdf
from gmdf_hf.modeling.experts_gmdf import DomainExperts
from tests.conftest import DIL_VARIANTS, redraw_zeros

EXPERTS, WIDTH, BOTTLENECK, PROMPT, TOKENS = 3, 12, 5, 8, 2


@pytest.fixture(params=DIL_VARIANTS)
def setting(request):
    torch.manual_seed(0)
    experts = DomainExperts(
        WIDTH, EXPERTS, BOTTLENECK, PROMPT, request.param, TOKENS, "quick_gelu", "sum", 1.5
    ).double()
    for parameter in experts.parameters():
        torch.nn.init.zeros_(parameter)
    redraw_zeros(experts)
    x = torch.randn(4, 6, WIDTH, dtype=torch.double)
    gamma, beta = torch.randn(2, WIDTH, dtype=torch.double)
    prompts = torch.randn(EXPERTS, PROMPT, dtype=torch.double)
    return experts, x, gamma, beta, prompts


def literal_dil(experts, x, gamma, beta, prompt, n):
    """Eq. 3, 14 and Table 9 for one token and one domain, as written in the paper."""
    dil = experts.dil
    normalised = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
    if dil.variant == "cross_attention":
        z = normalised * gamma + beta
        tokens = prompt.reshape(TOKENS, -1)
        query = dil.query_weight[n] @ z
        weights = torch.softmax(tokens @ query / tokens.shape[1] ** 0.5, 0)
        return z + dil.output_weight[n] @ (weights @ tokens)
    gain = gamma * (1 + dil.gain_weight[n] @ prompt + dil.gain_bias[n])
    bias = beta
    if dil.variant == "affine_bias":
        bias = beta + dil.shift_weight[n] @ prompt + dil.shift_bias[n]
    return normalised * gain + bias


def literal_view(experts, x, gamma, beta, prompt, n):
    hidden = experts.down_weight[n] @ literal_dil(experts, x, gamma, beta, prompt, n) + experts.down_bias[n]
    return 1.5 * experts.alpha[n] * (experts.up_weight[n] @ experts.activation_fn(hidden) + experts.up_bias[n])


@pytest.mark.parametrize("active", [None, [2, 0], [1]])
@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_aggregated_route_equals_a_loop_over_tokens(setting, aggregation, active):
    experts, x, gamma, beta, prompts = setting
    experts.aggregation = aggregation
    normed = layer_norm(x, (WIDTH,), gamma, beta)
    output, shares = experts(normed, beta, prompts, active_experts=active, output_shares=True)
    chosen = list(range(EXPERTS)) if active is None else active
    norms = torch.zeros(len(x), EXPERTS, dtype=torch.double)
    for image, token in itertools.product(range(x.shape[0]), range(x.shape[1])):
        views = torch.stack([literal_view(experts, x[image, token], gamma, beta, prompts[n], n) for n in chosen])
        attention = torch.softmax(views @ views.T / WIDTH**0.5, -1)
        attended = attention @ views
        expected = attended.sum(0) if aggregation == "sum" else attended.mean(0)
        torch.testing.assert_close(output[image, token], expected, atol=1e-6, rtol=1e-5)
        norms[image, chosen] += attention.sum(0) * views.norm(dim=1)
    torch.testing.assert_close(shares.double(), norms / norms.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["single", "autocast"])
@pytest.mark.parametrize("active", [None, [2, 0]])
@pytest.mark.parametrize("count", [1, 3, 4], ids="images_at_a_time={}".format)  # 3: the last ones are fewer
def test_without_gradient_a_few_images_at_a_time_are_aggregated_with_the_same_result(
    setting, count, active, dtype, monkeypatch
):
    experts, x, _, beta, prompts = setting
    arguments = [tensor.float() for tensor in (x, beta, prompts)]
    size = 4 * x[0].numel() * (EXPERTS if active is None else len(active))
    monkeypatch.setattr(experts_gmdf, "CACHE", count * size)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        expected, expected_shares = experts.float()(*arguments, active_experts=active, output_shares=True)
        with torch.no_grad():
            found, no_shares = experts(*arguments, active_experts=active)
            with_shares, shares = experts(*arguments, active_experts=active, output_shares=True)
    assert no_shares is None and found.dtype == expected.dtype and shares.dtype == expected_shares.dtype
    tolerance = {} if dtype is None else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(found, expected.detach(), **tolerance)
    torch.testing.assert_close(with_shares, expected.detach(), **tolerance)
    torch.testing.assert_close(shares, expected_shares, **tolerance)


def test_known_domains_use_their_own_expert_only(setting):
    experts, x, gamma, beta, prompts = setting
    ids = torch.tensor([2, 0, 1, 2])
    output, shares = experts(layer_norm(x, (WIDTH,), gamma, beta), beta, prompts, ids, output_shares=True)
    for image, token in itertools.product(range(x.shape[0]), range(x.shape[1])):
        n = int(ids[image])
        expected = literal_view(experts, x[image, token], gamma, beta, prompts[n], n)
        torch.testing.assert_close(output[image, token], expected)
    assert shares.tolist() == torch.eye(EXPERTS)[ids].tolist()


def test_gradients_equal_those_of_the_loop(setting):
    experts, x, gamma, beta, prompts = setting
    x = x[:1, :2].requires_grad_()
    inputs = [x, *experts.parameters()]
    output, _ = experts(layer_norm(x, (WIDTH,), gamma, beta), beta, prompts)
    fast = torch.autograd.grad(output.square().sum(), inputs)
    total = 0
    for token in range(x.shape[1]):
        views = torch.stack([literal_view(experts, x[0, token], gamma, beta, prompts[n], n) for n in range(EXPERTS)])
        total = total + (torch.softmax(views @ views.T / WIDTH**0.5, -1) @ views).sum(0).square().sum()
    for ours, expected in zip(fast, torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_no_expert_gets_a_gradient_from_another_domain(setting):
    experts, x, gamma, beta, prompts = setting
    output, _ = experts(layer_norm(x, (WIDTH,), gamma, beta), beta, prompts, domain_ids=torch.tensor([1, 1, 1, 1]))
    for gradient in torch.autograd.grad(output.square().sum(), list(experts.parameters())):
        assert gradient[1].any()
        assert not gradient[[0, 2]].any()


def test_an_expert_layer_needs_an_expert():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        DomainExperts(WIDTH, 0, BOTTLENECK, PROMPT, "affine", TOKENS, "gelu", "mean", 1.0)


def test_products_of_views_do_not_overflow_half_precision():
    experts = DomainExperts(WIDTH, EXPERTS, BOTTLENECK, PROMPT, "affine", TOKENS, "quick_gelu", "mean", 64.0)
    for parameter in experts.parameters():
        torch.nn.init.constant_(parameter, 1.0)
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    arguments = torch.zeros(WIDTH), torch.zeros(EXPERTS, PROMPT)
    expected, _ = experts(x, *arguments)
    assert expected.square().sum(-1).max() > torch.finfo(torch.float16).max  # otherwise float16 would not overflow
    with torch.autocast("cpu", torch.float16):
        output, shares = experts(x, *arguments, output_shares=True)
    assert output.isfinite().all() and shares.isfinite().all()
    torch.testing.assert_close(output.float(), expected, rtol=2e-2, atol=1.0)
