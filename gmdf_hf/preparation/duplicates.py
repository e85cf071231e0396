"""Near-duplicate pictures between splits, by perceptual hash."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# Of 64 bits. With four bands of 16 bits, such hashes agree in at least one band.
MAX_DISTANCE = 3
BANDS = (0, 16, 32, 48)
# Hashes with fewer ones or zeros come from flat pictures and are not informative.
MIN_BITS = 8


@dataclass(frozen=True)
class Duplicate:
    """Two videos of different splits with near-duplicate pictures, and the number of such pairs."""

    first: str
    second: str
    pairs: int


def near_duplicates(
    hashes: np.ndarray, videos: Iterable[str], others: np.ndarray, other_videos: Iterable[str]
) -> list[Duplicate]:
    """Find pictures of two sets whose hashes differ in at most `MAX_DISTANCE` bits.

    Args:
        hashes: Hashes of the first set, uint64 of shape `(N,)`.
        videos: Video of each, N of them.
        others: Hashes of the second set, shape `(M,)`.
        other_videos: Video of each, M of them.

    Returns:
        Pairs of videos, those with the most pairs of pictures first.
    """
    hashes, others = np.asarray(hashes, np.uint64), np.asarray(others, np.uint64)
    keep, other_keep = _telling(hashes), _telling(others)
    hashes, others = hashes[keep], others[other_keep]
    names, other_names = np.asarray(list(videos), object)[keep], np.asarray(list(other_videos), object)[other_keep]
    found: set[tuple[int, int]] = set()
    for shift in BANDS:
        bands = (hashes >> np.uint64(shift)) & np.uint64(0xFFFF)
        order = np.argsort(bands, kind="stable")
        sorted_bands = bands[order]
        other_bands = (others >> np.uint64(shift)) & np.uint64(0xFFFF)
        other_order = np.argsort(other_bands, kind="stable")
        values: np.ndarray
        first: np.ndarray
        values, first = np.unique(other_bands[other_order], return_index=True)
        starts, ends = first.tolist(), np.append(first, len(others))[1:].tolist()
        left = np.searchsorted(sorted_bands, values, "left").tolist()
        right = np.searchsorted(sorted_bands, values, "right").tolist()
        for a, b, c, d in zip(left, right, starts, ends, strict=True):
            for index in other_order[c:d] if b > a else ():
                near = order[a:b][np.bitwise_count(hashes[order[a:b]] ^ others[index]) <= MAX_DISTANCE]
                found.update((int(one), int(index)) for one in near)
    counts: dict[tuple[str, str], int] = {}
    for one, two in found:
        pair = (names[one], other_names[two])
        counts[pair] = counts.get(pair, 0) + 1
    return [Duplicate(*pair, number) for pair, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _telling(hashes: np.ndarray) -> np.ndarray:
    ones = np.bitwise_count(hashes)
    return (ones >= MIN_BITS) & (ones <= 64 - MIN_BITS)
