"""Domain experts beside any image backbone of transformers, timm's included (decision D20).

A backbone keeps its own class, forward pass and parameter names. Its experts are a separate module, and forward hooks
add the experts' output

* in a transformer, to the output of each block's feed-forward module, whose input is the block's normalised tokens:
  ``F(x) = F_theta(x) + dF_n(x)`` (Eq. 1). A layer scale or stochastic depth behind that module acts on the sum;
* in a convolutional network, to the output of each of its last stages, with positions as tokens:
  ``x + dF_n(LayerNorm(x))``, with a LayerNorm without parameters, as such a stage has no LayerNorm of its own.

``alpha_n`` starts at 0 in both, so a new detector's image features equal the backbone's on every route.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .experts_gmdf import DomainExperts
from .sites_gmdf import backbone_inputs, convolutional_sites, patch_embedding, patch_size_of, transformer_sites


@dataclass
class Route:
    """Inputs and outputs of the hooks in one forward pass.

    Attributes:
        prompts: Prompt vectors of the domains, shape `(E, M)`.
        domain_ids: Expert of each image, shape `(B,)`; None aggregates.
        active_experts: Experts the aggregated route may use.
        output_shares: Collect the experts' shares.
        mask: True for masked patches, shape `(B, patches)`.
        mask_token: Embedding that replaces a masked patch, shape `(D,)`.
        shares: Each expert's share at each site, each `(B, E)`.
        states: Input of each transformer block and output of the last; or the feature maps after the convolutional
            stages.
    """

    prompts: torch.Tensor
    domain_ids: torch.Tensor | None = None
    active_experts: torch.Tensor | Sequence[int] | None = None
    output_shares: bool = False
    mask: torch.Tensor | None = None
    mask_token: torch.Tensor | None = None
    shares: list[torch.Tensor] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)


# Route of the current forward pass, one per thread; None runs the backbone without experts.
_ROUTE: ContextVar[Route | None] = ContextVar("route", default=None)


@contextmanager
def following(route: Route | None) -> Iterator[None]:
    """Set the route of the experts for the block."""
    token = _ROUTE.set(route)
    try:
        yield
    finally:
        _ROUTE.reset(token)


def recomputation_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts for `torch.utils.checkpoint`: recomputation uses the route of the original forward pass."""
    route = _ROUTE.get()
    return nullcontext(), following(None if route is None else replace(route, shares=[], states=[]))


class BackboneExperts(nn.Module):
    """Experts of an image backbone, and the hooks that add their output (decision D20).

    Args:
        backbone: The backbone to register the hooks on.
        **expert_settings: Arguments of `DomainExperts` except width and activation.

    Raises:
        ValueError: If the backbone has no layer to which experts can be added.
    """

    def __init__(self, backbone: PreTrainedModel, **expert_settings):
        super().__init__()
        config = backbone.config
        sites = transformer_sites(backbone) or convolutional_sites(backbone)
        if not sites:
            raise ValueError(
                f"GM-DF cannot add experts to {type(backbone).__name__}: it needs transformer blocks with "
                "attention and a feed-forward module, or the stages of a convolutional network."
            )
        self.is_transformer = sites[0].block is not None
        activation = getattr(config, "hidden_act", "gelu")
        activation = activation if isinstance(activation, str) and activation in ACT2FN else "gelu"
        self.experts = nn.ModuleList(
            [DomainExperts(site.width, hidden_act=activation, **expert_settings) for site in sites]
        )
        network = getattr(backbone, "timm_model", None)
        if network is not None:
            self.map_size = network.num_features
            self.feature_size = getattr(network, "head_hidden_size", None) or network.num_features
        else:
            self.map_size = self.feature_size = config.hidden_size if self.is_transformer else config.hidden_sizes[-1]
        # In a list, so that the backbone's modules are not registered a second time.
        self._norms = [site.norm for site in sites]
        for number, site in enumerate(sites):
            if site.block is None:
                site.module.register_forward_hook(partial(self._after_stage, number))
            else:
                site.module.register_forward_hook(partial(self._after_feed_forward, number))
                site.block.register_forward_pre_hook(_keep_input, with_kwargs=True)
        last = sites[-1].block
        if last is not None:
            last.register_forward_hook(_keep_output)
        embedding = patch_embedding(backbone) if self.is_transformer else None
        if embedding is not None:
            embedding.register_forward_hook(_hide_patches)
        self.patch_size = patch_size_of(backbone, embedding, self.is_transformer)

    def run(
        self, backbone: PreTrainedModel, pixel_values: torch.Tensor, route: Route, **kwargs
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor | None]:
        """Run the backbone with its experts.

        Args:
            backbone: The backbone that this object was made for.
            pixel_values: Shape `(B, 3, H, W)`.
            route: Selected experts and masked patches; collects states and shares.
            **kwargs: `output_attentions` and so on, for the backbone.

        Returns:
            Output of the backbone; its image features of shape `(B, F)`; and the last hidden states of all patches,
            `(B, patches, D)`, if some are masked.

        Raises:
            ValueError: If the backbone does not support masking, or the mask has another number of patches than the
                images.
        """
        patches = None
        if route.mask is not None:
            if self.patch_size is None:
                raise ValueError(f"{type(backbone).__name__} has no patch embedding, so its patches cannot be masked.")
            height, width = (side // self.patch_size for side in pixel_values.shape[-2:])
            if route.mask.shape != (len(pixel_values), height * width):
                raise ValueError(
                    f"`bool_masked_pos` must have shape {(len(pixel_values), height * width)}, "
                    f"found {tuple(route.mask.shape)}."
                )
            route.mask = route.mask.to(pixel_values.device, non_blocking=True)
            patches = height * width
            if not self.is_transformer and route.mask_token is not None:
                hidden = route.mask.view(-1, 1, height, width).repeat_interleave(self.patch_size, 2)
                hidden = hidden.repeat_interleave(self.patch_size, 3)
                pixel_values = torch.where(hidden, route.mask_token.view(3, 1, 1).to(pixel_values), pixel_values)
        with following(route):
            output = backbone(**backbone_inputs(backbone, pixel_values), **kwargs)
        tokens = output.last_hidden_state
        pooled = output.get("pooler_output")
        if pooled is None:  # the class token
            pooled = tokens[:, 0]
        tokens = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
        if patches is not None and tokens.shape[1] < patches:
            raise ValueError(
                f"{type(backbone).__name__} makes {tokens.shape[1]} positions of an image of "
                f"{tuple(pixel_values.shape[-2:])} pixels, expected {patches} patches to reconstruct: give images "
                f"whose sides are multiples of {self.patch_size}."
            )
        vision = BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=pooled.flatten(1), attentions=output.get("attentions")
        )
        # Class and register tokens come before those of the patches.
        return vision, None if patches is None else tokens[:, -patches:]

    def _of_site(self, number: int, tokens: torch.Tensor, bias: torch.Tensor, route: Route) -> torch.Tensor:
        """The experts' part at a site, for normalised tokens of shape `(B, T, D)`."""
        choice = route.domain_ids, route.active_experts, route.output_shares
        part, shares = self.experts[number](tokens, bias, route.prompts, *choice)
        if shares is not None:
            route.shares.append(shares)
        return part

    def _after_feed_forward(
        self, number: int, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        """Hook after a block's feed-forward module, whose input is the block's normalised tokens."""
        if (route := _ROUTE.get()) is None:
            return None
        normed, bias = args[0], getattr(self._norms[number], "bias", None)
        bias = normed.new_zeros(normed.shape[-1]) if bias is None else bias
        tokens = normed.flatten(1, -2)  # some blocks keep rows and columns apart
        part = self._of_site(number, tokens, bias, route)
        return output + part.view(normed.shape).to(output.device)

    def _after_stage(
        self, number: int, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        """Hook after a stage, whose output is a map of shape `(B, C, H, W)`."""
        if (route := _ROUTE.get()) is None:
            return None
        tokens = output.flatten(2).transpose(1, 2)
        normed = layer_norm(tokens, tokens.shape[-1:])
        bias = normed.new_zeros(normed.shape[-1])
        part = self._of_site(number, normed, bias, route)
        route.states.append(output + part.transpose(1, 2).view(output.shape).to(output.device))
        return route.states[-1]


def _keep_input(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hook before a transformer block."""
    if (route := _ROUTE.get()) is not None:
        route.states.append(args[0] if args else kwargs["hidden_states"])


def _keep_output(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Hook after the last transformer block."""
    if (route := _ROUTE.get()) is not None:
        route.states.append(output[0] if isinstance(output, tuple) else output)


def _hide_patches(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
    """Hook after a patch embedding: `(B, D, H, W)`, or `(B, patches, D)` if it is a linear map."""
    route = _ROUTE.get()
    if route is None or route.mask is None or route.mask_token is None:
        return None
    token = route.mask_token.to(output)
    if output.ndim == 4:
        return torch.where(route.mask.view(-1, 1, *output.shape[2:]), token[:, None, None], output)
    return torch.where(route.mask[..., None], token, output)
