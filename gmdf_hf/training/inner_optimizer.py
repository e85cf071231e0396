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

    All of theta_E is one matrix with a row per domain: a few operations instead of a dozen for each of its tensors,
    which on a GPU would take longer to start than to run.

    Args:
        learning_rate: Step size beta.
        max_grad_norm: Bound on the norm of each domain's gradient; None for none.
    """

    betas, eps = (0.9, 0.999), 1e-8

    def prepare(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Allocate the moments of these parameters."""
        first = next(iter(parameters.values()))
        width = sum(parameter[0].numel() for parameter in parameters.values())
        self.steps = torch.zeros(len(first), 1, device=first.device)
        self.mean = torch.zeros(len(first), width, dtype=first.dtype, device=first.device)
        self.square = torch.zeros_like(self.mean)

    def state(self) -> Tensors:
        """Tensors that a resumed run needs; updated in place."""
        return {"steps": self.steps, "mean": self.mean, "square": self.square}

    @torch.no_grad()
    def updated(
        self, parameters: Mapping[str, torch.Tensor], gradients: Sequence[torch.Tensor], domains: Sequence[int]
    ) -> Tensors:
        """Take one step; see `ExpertSGD.updated`. The moments change in place."""
        mean_decay, square_decay = self.betas
        rows = torch.as_tensor(domains, device=self.steps.device)
        gradient = clipped([_rows(gradients)], self.max_grad_norm)[0].index_select(0, rows)
        steps = self.steps.index_select(0, rows) + 1
        mean = self.mean.index_select(0, rows).lerp_(gradient, 1 - mean_decay)
        square = self.square.index_select(0, rows).mul_(square_decay)
        square.addcmul_(gradient, gradient, value=1 - square_decay)
        for state, value in ((self.steps, steps), (self.mean, mean), (self.square, square)):
            state.index_copy_(0, rows, value)
        denominator = square.sqrt_().div_((1 - square_decay**steps).sqrt()).add_(self.eps)
        step = mean.div_(denominator).mul_(self.learning_rate / (1 - mean_decay**steps))
        new = _rows(list(parameters.values())).index_add_(0, rows, step, alpha=-1)
        pieces = new.split([parameter[0].numel() for parameter in parameters.values()], dim=1)
        shapes = zip(parameters.items(), pieces, strict=True)
        return {name: piece.reshape(parameter.shape) for (name, parameter), piece in shapes}


def _rows(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A new matrix with a row per domain, of tensors whose first dimension is the domain."""
    return torch.cat([tensor.detach().reshape(len(tensor), -1) for tensor in tensors], 1)


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
