import numpy as np

from gmdf_hf.preparation.duplicates import MAX_DISTANCE, near_duplicates


def test_against_all_pairs():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**63, 300, np.uint64) * 2 + 1
    second = rng.integers(0, 2**63, 200, np.uint64) * 2
    for n in range(60):  # plant neighbours at distances 0 to 5
        bits = rng.choice(64, n % 6, replace=False)
        second[n] = first[3 * n] ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64), initial=np.uint64(0))
    videos, others = [f"a{n // 3}" for n in range(300)], [f"b{n // 2}" for n in range(200)]
    expected = {}
    for one, video in zip(first, videos, strict=True):
        for two, other in zip(second, others, strict=True):
            if (int(one) ^ int(two)).bit_count() <= MAX_DISTANCE:
                expected[video, other] = expected.get((video, other), 0) + 1
    found = near_duplicates(first, videos, second, others)
    assert {(d.first, d.second): d.pairs for d in found} == expected and len(expected) >= 20
    assert [d.pairs for d in found] == sorted((d.pairs for d in found), reverse=True)


def test_flat_pictures_are_never_duplicates():
    flat = np.zeros(10, np.uint64)
    assert near_duplicates(flat, "a" * 10, ~flat, "b" * 10) == near_duplicates(flat, "a" * 10, flat, "b" * 10) == []
    assert near_duplicates(flat[:0], "", flat, "b" * 10) == []
