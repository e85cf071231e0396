"""Domain experts of a transformer block: Dataset Information Layer, bottlenecks, and their aggregation (Eq. 1-6).

Experts are stacked along a leading dimension E. A batch with images of several domains, or the outputs of all experts
for an image of an unknown domain, is then one matrix product instead of a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from .text_gmdf import at_least_single

CACHE = 20_000_000  # bytes; images without gradient are aggregated as many at a time as have views of this size


class DomainInformationLayer(nn.Module):
    """Computes each expert's normalised input from its domain's prompt vector p_n (Eq. 3, 14, Table 9).

    With ``z`` the block's normalised input (``gamma``, ``beta`` its LayerNorm's own parameters):

    * `affine`: gain ``gamma * (1 + h(p_n))``, bias ``beta``;
    * `affine_bias`: the same gain, bias ``beta + b(p_n)``;
    * `cross_attention`: ``z`` is the query, p_n split into tokens is key and value, and a projection of the result is
      added to ``z``.

    The last linear map of each variant starts small but not at 0 (decision D17): in a new model ``alpha_n = 0`` already
    removes its effect, and weights of 0 would hardly learn as long as alpha is small.

    Args:
        hidden_size: Token width D.
        num_experts: Number of source domains E.
        prompt_size: Length M of a prompt vector.
        variant: `affine`, `affine_bias` or `cross_attention`.
        num_prompt_tokens: Number of tokens the prompt vector is split into; used by `cross_attention` only.
    """

    def __init__(self, hidden_size: int, num_experts: int, prompt_size: int, variant: str, num_prompt_tokens: int):
        super().__init__()
        self.variant = variant
        self.num_prompt_tokens = num_prompt_tokens
        if variant == "cross_attention":
            token_size = prompt_size // num_prompt_tokens
            self.query_weight = nn.Parameter(torch.empty(num_experts, token_size, hidden_size))
            self.output_weight = nn.Parameter(torch.empty(num_experts, hidden_size, token_size))
        else:
            self.gain_weight = nn.Parameter(torch.empty(num_experts, hidden_size, prompt_size))
            self.gain_bias = nn.Parameter(torch.empty(num_experts, hidden_size))
        if variant == "affine_bias":
            self.shift_weight = nn.Parameter(torch.empty(num_experts, hidden_size, prompt_size))
            self.shift_bias = nn.Parameter(torch.empty(num_experts, hidden_size))

    def forward(
        self, normed: torch.Tensor, norm_bias: torch.Tensor, prompts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return every expert's change of the block's normalised input ``z``, which includes gamma and beta.

        ``x_hat * gamma * (1 + h) + beta + b  =  z * (1 + h) + (b - beta * h)``, or ``z + W answer``.

        Args:
            normed: Normalised tokens z, shape `(B, T, D)`.
            norm_bias: `beta` of the block's LayerNorm, shape `(D,)`.
            prompts: Prompt vectors p, shape `(E, M)`.

        Returns:
            Gain and bias, each of shape `(E, D)`; for `cross_attention` also the attention outputs `(B, T, E, m)` and
            the projections W `(E, D, m)`, None otherwise.
        """
        if self.variant == "cross_attention":
            zeros = norm_bias.new_zeros(len(prompts), len(norm_bias))
            return zeros + 1, zeros, self._attend(normed, prompts), self.output_weight
        gain = self.gains(prompts)
        bias = norm_bias * (1 - gain)
        if self.variant == "affine_bias":
            bias = bias + _of_prompts(self.shift_weight, self.shift_bias, prompts)
        return gain, bias, None, None

    def gains(self, prompts: torch.Tensor) -> torch.Tensor:
        """``1 + h(p)`` of the affine variants, shape `(E, D)`."""
        return 1 + _of_prompts(self.gain_weight, self.gain_bias, prompts)

    def _attend(self, normed: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Attention of tokens z `(B, T, D)` to every domain's prompt tokens, `(B, T, E, M / num_prompt_tokens)`."""
        tokens = prompts.unflatten(-1, (self.num_prompt_tokens, -1))
        queries = torch.einsum("btd,emd->btem", normed, self.query_weight)
        scores = torch.einsum("btem,ekm->btek", queries, tokens) * tokens.shape[-1] ** -0.5
        return torch.einsum("btek,ekm->btem", scores.softmax(-1), tokens)


def _of_prompts(weight: torch.Tensor, bias: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """``W_e p_e + b_e`` for each expert, shape `(E, D)`."""
    return torch.baddbmm(bias[..., None], weight, prompts[..., None])[..., 0]


class DomainExperts(nn.Module):
    """Residual experts of one block, one per source domain (Eq. 1-6).

    Expert n maps tokens x to ``V_n = scale * alpha_n * up_n(act(down_n(DIL_n(x))))``. ``alpha_n`` starts at 0 (ReZero,
    Eq. 2), so a new module adds nothing and the block is CLIP's.

    Decision D17: the constant `scale` lets experts learn at the small step sizes of the text side. All experts of a
    block start from the same random weights: with independent weights they learn in random directions, and the mean of
    Eq. 6 cancels them.

    Decision D1: the shared MLP reads the block's own LayerNorm and only the experts read the DIL. Eq. 1 shares that MLP
    between all domains, so its input must not depend on the domain.

    Decision D2, routing: with `domain_ids` each image uses its own expert only. Without, every active expert sees every
    token, the E outputs stacked as V (E x D) attend to each other, ``softmax(V V^T / sqrt(D)) V`` (Eq. 5-6), and the E
    rows are reduced. The paper says "summation"; a sum grows with E, while in training each image uses a single expert,
    so the default is `mean` (docs/measurements.md).

    Args:
        hidden_size: Token width D.
        num_experts: Number of source domains E.
        bottleneck_size: Width R inside an expert.
        prompt_size: Numbers M in a prompt vector.
        dil: Variant of the Dataset Information Layer.
        num_prompt_tokens: Number of tokens a prompt vector is split into (`cross_attention`).
        hidden_act: Activation inside an expert.
        aggregation: `sum` or `mean` over the experts' outputs.
        scale: Constant factor on every expert's output.

    Raises:
        ValueError: If `num_experts` is below 1.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        bottleneck_size: int,
        prompt_size: int,
        dil: str,
        num_prompt_tokens: int,
        hidden_act: str,
        aggregation: str,
        scale: float,
    ):
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"`num_experts` must be at least 1, found {num_experts}.")
        self.aggregation, self.scale = aggregation, scale
        self.share_tokens: int | None = None  # the shares are means over the first so many tokens; None for all
        self.dil = DomainInformationLayer(hidden_size, num_experts, prompt_size, dil, num_prompt_tokens)
        self.down_weight = nn.Parameter(torch.empty(num_experts, bottleneck_size, hidden_size))
        self.down_bias = nn.Parameter(torch.empty(num_experts, bottleneck_size))
        self.activation_fn = ACT2FN[hidden_act]
        self.up_weight = nn.Parameter(torch.empty(num_experts, hidden_size, bottleneck_size))
        self.up_bias = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.alpha = nn.Parameter(torch.empty(num_experts))

    def forward(
        self,
        normed: torch.Tensor,
        norm_bias: torch.Tensor,
        prompts: torch.Tensor,
        domain_ids: torch.Tensor | None = None,
        active_experts: torch.Tensor | Sequence[int] | None = None,
        output_shares: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the experts' part of the block's output, and on request each expert's share of it.

        Args:
            normed: The block's normalised input ``LayerNorm(x)``, shape `(B, T, D)`.
            norm_bias: `beta` of that LayerNorm, shape `(D,)`.
            prompts: Prompt vectors of the domains, shape `(E, M)`.
            domain_ids: Expert of each image, shape `(B,)`; None aggregates the active experts (Eq. 5-6).
            active_experts: Experts the aggregated route may use; None for all. A tensor on the model's device saves a
                copy to it in every block.
            output_shares: Compute the shares.

        Returns:
            The tensor of shape `(B, T, D)` to add to the shared feed-forward output; and each expert's share of it,
            shape `(B, E)`, rows summing to 1 (see `_shares`), or None.
        """
        gain, bias, answer, projection = self.dil(normed, norm_bias, prompts)
        # DIL and down projection are both linear, so they are one product: W (z * gain + bias) = (W * gain) z + W bias.
        down_weight = self.down_weight * gain[:, None]
        down_bias = torch.baddbmm(self.down_bias[:, None], bias[:, None], self.down_weight.transpose(1, 2))  # (E, 1, R)
        alpha = (self.scale * self.alpha)[:, None, None]
        up_weight, up_bias = alpha * self.up_weight, alpha * self.up_bias[:, None]
        if projection is not None:
            projection = torch.bmm(self.down_weight, projection)  # (E, R, m)
        weights = [down_bias, down_weight, up_bias, up_weight]
        if domain_ids is not None:
            # The gradient of `index_select` is far cheaper than that of indexing.
            down_bias, down_weight, up_bias, up_weight = [weight.index_select(0, domain_ids) for weight in weights]
            hidden = torch.baddbmm(down_bias, normed, down_weight.transpose(1, 2))  # (B, T, R)
            if answer is not None and projection is not None:
                own = answer[torch.arange(len(normed), device=normed.device), :, domain_ids]
                hidden = hidden + torch.bmm(own, projection.index_select(0, domain_ids).transpose(1, 2))
            part = torch.baddbmm(up_bias, self.activation_fn(hidden), up_weight.transpose(1, 2))
            shares = nn.functional.one_hot(domain_ids, len(self.alpha)).to(part.dtype) if output_shares else None
            return part, shares

        active = None if active_experts is None else torch.as_tensor(active_experts, device=normed.device)
        if active is not None:
            weights = [weight.index_select(0, active) for weight in weights]
            answer = None if answer is None else answer.index_select(2, active)
            projection = None if projection is None else projection.index_select(0, active)
        maps = (*weights, projection)
        images, answers = [normed], [answer]
        graph = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
        if normed.device.type == "cpu" and not graph:
            count = max(1, CACHE // max(1, 4 * len(weights[0]) * normed[:1].numel()))
            images = list(normed.split(count))
            answers = [None] * len(images) if answer is None else list(answer.split(count))
        parts: list[torch.Tensor] = []
        found: list[torch.Tensor] = []
        views = None
        for some, their_answers in zip(images, answers, strict=True):
            views = self._views(some, their_answers, maps, views)
            part, scores, portions = self._aggregate(views)
            parts.append(part.view(some.shape))
            found += [_shares(scores, portions, len(some), self.share_tokens)] if output_shares else []
        part = torch.cat(parts) if len(parts) > 1 else parts[0]
        if not found:
            return part, None
        shares = torch.cat(found).to(part.dtype)
        if active is not None:
            shares = shares.new_zeros(len(shares), len(self.alpha)).index_copy(1, active, shares)
        return part, shares

    def _views(
        self, normed: torch.Tensor, answer: torch.Tensor | None, maps: Sequence[Any], last: torch.Tensor | None
    ) -> torch.Tensor:
        """Outputs V of the active experts, shape `(B T, E, D)`, in the memory of the `last` ones if they fit."""
        down_bias, down_weight, up_bias, up_weight, projection = maps
        hidden = nn.functional.linear(normed, down_weight.flatten(0, 1), down_bias.flatten())
        hidden = hidden.unflatten(-1, down_weight.shape[:2])  # (B, T, E, R)
        if answer is not None:
            hidden = hidden + torch.einsum("btem,erm->bter", answer, projection)
        by_expert = self.activation_fn(hidden).flatten(0, 1).transpose(0, 1)  # (E, B T, R)
        up_weight = up_weight.transpose(1, 2)
        if last is None or len(last) != by_expert.shape[1]:
            return torch.baddbmm(up_bias, by_expert, up_weight).transpose(0, 1)
        # Clearing new memory would take half as long as the product; autocast leaves operations with `out` alone.
        views = torch.bmm(by_expert, up_weight.to(by_expert.dtype), out=last.transpose(0, 1))
        return views.add_(up_bias).transpose(0, 1)

    def _aggregate(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reduce the views V `(N, E, D)` of tokens (Eq. 5-6); also the scores `(N, E, E)` and weights `(N, E)`."""
        # Dot products of views overflow half precision.
        with torch.autocast(views.device.type, enabled=False):
            wide = at_least_single(views)
            scores = torch.bmm(wide, wide.transpose(1, 2)) * wide.shape[-1] ** -0.5
            weights = scores.softmax(-1).sum(1)  # row i attends to j; the rows are then summed
            if self.aggregation == "mean":
                weights = weights / weights.shape[-1]
            return torch.bmm(weights[:, None].to(views.dtype), views)[:, 0], scores, weights


@torch.no_grad()
def _shares(scores: torch.Tensor, weights: torch.Tensor, batch_size: int, tokens: int | None) -> torch.Tensor:
    """Share of each expert, `(B, E)`: the mean over `tokens` of ``w_e |V_e|``, divided by its sum; equal if all are 0.

    The diagonal of `scores`, of shape `(B T, E, E)`, is ``|V_e|^2`` times a constant; `weights` have shape `(B T, E)`.
    """
    portions = (weights * scores.diagonal(dim1=1, dim2=2).sqrt()).unflatten(0, (batch_size, -1))
    shares = portions[:, :tokens].mean(1)
    total = shares.sum(-1, keepdim=True)
    return torch.where(total > 0, shares / total.where(total > 0, 1), 1 / shares.shape[-1])
