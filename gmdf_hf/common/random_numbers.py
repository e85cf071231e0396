"""Independent random number generators, each a pure function of a purpose and a few numbers."""

from __future__ import annotations

import zlib

import numpy as np


def random_numbers(purpose: str, *numbers: int) -> np.random.Generator:
    """Return the random number generator of a purpose.

    `default_rng((1, 2, 3))` equals `default_rng((1, 2, 3, 0))`: missing numbers count as 0. So the seed here contains
    no 0, and the purpose comes first.

    Args:
        purpose: Use of the random numbers, such as `order of frames`.
        numbers: Seed, epoch and so on, each at least 0.
    """
    return np.random.default_rng((zlib.crc32(purpose.encode()), *(number + 1 for number in numbers)))
