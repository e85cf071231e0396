"""Communication between processes (decision D15): sums, gathers, agreement. No effect with one process.

A meta-iteration computes its gradients outside of a wrapped module's forward, where DistributedDataParallel silently
averages nothing. The functions here therefore synchronise gradients and features explicitly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import distributed

BUCKET = 2**26  # elements per reduction: 256 MiB in single precision


def num_processes() -> int:
    """Number of processes of this run."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_index() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if num_processes() > 1 else 0


class _SumOverProcesses(torch.autograd.Function):
    """A sum whose gradient is the sum of the processes' gradients, as each process uses the result."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.detach().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _SumOverProcesses.apply(gradient)


def sum_over_processes(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Sum each tensor over the processes, with gradient.

    Args:
        tensors: Tensors with the same shapes and order in every process.
    """
    if num_processes() == 1 or not tensors:
        return list(tensors)
    total = _SumOverProcesses.apply(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = total.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


@torch.no_grad()
def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each parameter's gradient by its sum over the processes.

    Every process must pass the same parameters. A missing gradient counts as zero, as another process may have one.
    """
    if num_processes() == 1:
        return
    bucket: list[torch.nn.Parameter] = []
    size = 0

    def flush() -> None:
        gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
        for gradient, total in zip(gradients, sum_over_processes(gradients), strict=True):
            gradient.copy_(total)
        bucket.clear()

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter)
        size += parameter.numel()
        if size >= BUCKET:
            flush()
            size = 0
    if bucket:
        flush()


def gather_counts(counts: Sequence[int], device: torch.device) -> tuple[tuple[int, ...], ...]:
    """Gather a few numbers from every process, in the order of the processes."""
    if num_processes() == 1:
        return (tuple(counts),)
    ours = torch.tensor(counts, device=device)
    everyones = [torch.empty_like(ours) for _ in range(num_processes())]
    distributed.all_gather(everyones, ours)
    return tuple(tuple(row) for row in torch.stack(everyones).tolist())


def gather_features(features: torch.Tensor, counts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Gather the features of every domain from all processes.

    Each process keeps only the gradient of its own features. Every process computes the same function of the gathered
    features, so the sum of their gradients is the gradient of that function.

    Args:
        features: Features of this process, ordered by domain, shape `(n, P)`.
        counts: Number of features per process and domain.

    Returns:
        For each domain the features of all processes, in the order of the processes.
    """
    if num_processes() == 1:
        return list(features.split(list(counts[0])))
    padded = features.new_zeros(max(sum(row) for row in counts), features.shape[1])
    padded[: len(features)] = features.detach()
    everyones = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(everyones, padded)
    parts = [theirs[: sum(row)].split(list(row)) for theirs, row in zip(everyones, counts, strict=True)]
    parts[process_index()] = features.split(list(counts[process_index()]))
    return [torch.cat(of_domain) for of_domain in zip(*parts, strict=True)]


@torch.no_grad()
def same_on_all(parameters: Iterable[torch.Tensor]) -> None:
    """Broadcast the values of the first process."""
    if num_processes() > 1:
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)


@torch.no_grad()
def average_over_processes(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    if num_processes() > 1:
        for tensor, total in zip(tensors, sum_over_processes(tensors), strict=True):
            tensor.copy_(total / num_processes())


def wait_for_all() -> None:
    """Wait until every process has reached this call."""
    if num_processes() > 1:
        distributed.barrier()


def agree(losses: Mapping[str, torch.Tensor], norm: torch.Tensor, stop: bool) -> tuple[dict[str, float], bool]:
    """Copy an iteration's losses to the CPU, equal on all processes: the iteration's only synchronisation.

    Args:
        losses: This process's share of each loss.
        norm: Gradient norm, the same everywhere.
        stop: Whether this process received a stop request.

    Returns:
        The losses and `gradient_norm`, and whether any process received a stop request.
    """
    shares = [*losses.values(), norm / num_processes(), norm.new_tensor(float(stop))]
    *values, stopped = sum_over_processes([torch.stack([share.float() for share in shares])])[0].tolist()
    return dict(zip([*losses, "gradient_norm"], values, strict=True)), stopped > 0
