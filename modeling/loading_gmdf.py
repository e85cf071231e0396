"""Check of loaded weights: the scores of a partly random model look plausible."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

SHOWN = 3


class BrokenModelError(ValueError):
    """The checkpoint or image processor cannot be used; the message gives the reason."""

    exit_code = 1
    hint = "Download the checkpoint again, or load another one."


def check_weights(model: nn.Module, report: dict[str, Any], name: str | os.PathLike) -> None:
    """Reject weights that are missing, unexpected, of another shape or not finite.

    Args:
        model: The loaded model.
        report: Loading info from `from_pretrained(output_loading_info=True)`.
        name: Source of the model, for the message.

    Raises:
        BrokenModelError: If the weights do not fit the model.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    problems = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "of another shape": report["mismatched_keys"],
        "not finite": [key for key, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()],
    }
    found = [f"{what}: {some_of(sorted(map(str, keys)))}" for what, keys in problems.items() if keys]
    if found:
        raise BrokenModelError(f"{name} is damaged: weights are {'; '.join(found)}.")


def some_of(names: Iterable[str]) -> str:
    """The first few names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
