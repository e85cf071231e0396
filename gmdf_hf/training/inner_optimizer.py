"""Optimizers of the inner step, which updates theta_E (Eq. 10, decision D17).

The parameters of domain n are row n of every parameter of theta_E. Each optimizer treats the domains independently: a
held-out domain keeps its weights, moments and step count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Tensors = dict[str, torch.Tensor]


class ExpertSGD:
    """Plain gradient descent, exactly Eq. 10: ``theta_E' = theta_E - beta * gradient``; differentiable.

    Args:
        learning_rate: Step size beta.
        max_grad_norm: Bound on the norm of each domain's gradient; None for none.
    """

    def __init__(self, learning_rate: float, max_grad_norm: float | None = None) -> None:
        self.learning_rate, self.max_grad_norm = learning_rate, max_grad_norm

    def prepare(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Allocate the state for these parameters (none)."""

    def state(self) -> Tensors:
        """Tensors that a resumed run needs; updated in place."""
        return {}

    def updated(
        self, parameters: Mapping[str, torch.Tensor], gradients: Sequence[torch.Tensor], domains: Sequence[int]
    ) -> Tensors:
        """Take one step.

        Args:
            parameters: theta_E by name, each of shape `(E, ...)`; not modified.
            gradients: Of each parameter, 0 in the rows of other domains.
            domains: Domains that had a batch.

        Returns:
            theta_E' by name.
        """
        gradients = clipped(gradients, self.max_grad_norm)
        pairs = zip(parameters.items(), gradients, strict=True)
        return {name: parameter - self.learning_rate * gradient for (name, parameter), gradient in pairs}


class ExpertAdam(ExpertSGD):
    """Adam, the paper's optimizer, with separate moments and step count per domain.

    Args:
        learning_rate: Step size beta.
        max_grad_norm: Bound on the norm of each domain's gradient; None for none.
    """

    betas, eps = (0.9, 0.999), 1e-8

    def prepare(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Allocate the moments of these parameters."""
        first = next(iter(parameters.values()))
        self.steps = torch.zeros(len(first), device=first.device)
        self.means = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def state(self) -> Tensors:
        """Tensors that a resumed run needs; updated in place."""
        means = {f"mean.{name}": value for name, value in self.means.items()}
        return {"steps": self.steps, **means, **{f"square.{name}": value for name, value in self.squares.items()}}

    @torch.no_grad()
    def updated(
        self, parameters: Mapping[str, torch.Tensor], gradients: Sequence[torch.Tensor], domains: Sequence[int]
    ) -> Tensors:
        """Take one step; see `ExpertSGD.updated`. The moments change in place."""
        mean_decay, square_decay = self.betas
        rows = torch.as_tensor(domains, device=self.steps.device)
        self.steps[rows] += 1
        steps = self.steps[rows]
        step_sizes = self.learning_rate / (1 - mean_decay**steps)
        corrections = (1 - square_decay**steps).sqrt()
        new = {}
        gradients = clipped(gradients, self.max_grad_norm)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            shape = (-1, *[1] * (parameter.ndim - 1))
            of_domains = gradient[rows]
            mean = self.means[name][rows].lerp_(of_domains, 1 - mean_decay)
            square = (
                self.squares[name][rows].mul_(square_decay).addcmul_(of_domains, of_domains, value=1 - square_decay)
            )
            self.means[name][rows], self.squares[name][rows] = mean, square
            denominator = square.sqrt_().div_(corrections.to(square).view(shape)).add_(self.eps)
            step = mean.div_(denominator).mul_(step_sizes.to(mean).view(shape))
            new[name] = parameter.detach().clone().index_add_(0, rows, step, alpha=-1)
        return new


def clipped(gradients: Sequence[torch.Tensor], max_norm: float | None) -> Sequence[torch.Tensor]:
    """Clip the gradient norm over all parameters to `max_norm`, separately for each domain (row)."""
    if max_norm is None:
        return gradients
    squares = [
        gradient.flatten(1).square().sum(1) if gradient.ndim > 1 else gradient.square() for gradient in gradients
    ]
    norms = torch.stack(squares).sum(0).add(1e-12).sqrt()
    factors = (max_norm / norms).clamp(max=1)
    return [gradient * factors.view(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]
