"""Independent streams of random numbers, each a pure function of what it is for and of a few numbers."""

from __future__ import annotations

import zlib

import numpy as np


def random_numbers(purpose: str, *numbers: int) -> np.random.Generator:
    """A generator of its own for a purpose.

    `default_rng((1, 2, 3))` is `default_rng((1, 2, 3, 0))`: missing numbers count as 0. So no number is 0 here, and the
    purpose comes first.

    Args:
        purpose: What the numbers decide: `order of frames`.
        numbers: Seed, epoch and so on, each at least 0.
    """
    return np.random.default_rng((zlib.crc32(purpose.encode()), *(number + 1 for number in numbers)))
