from pathlib import Path

import pytest

from gmdf_hf.common.errors import SourceError
from gmdf_hf.preparation.sources.record import (
    Listing,
    Record,
    carve_validation,
    check_leaks,
    drop_leaks,
    hash_fraction,
    hash_split,
    natural,
)


def record(video_id, group, split):
    return Record(Path("x.mp4"), 0, "real", video_id, group, split)


def test_hash_is_stable_across_versions():
    assert hash_fraction("person_42") == pytest.approx(0.4113, abs=1e-4)
    shares = [hash_split(str(n)) for n in range(20_000)]
    assert shares.count("train") / 20_000 == pytest.approx(0.8, abs=0.01)
    assert shares.count("test") / 20_000 == pytest.approx(0.1, abs=0.01)


def test_leaks_are_refused():
    check_leaks([record("a", "g", "train"), record("b", "g", "train"), record("c", "h", "test")])
    with pytest.raises(SourceError, match=r"Leak: 1 of column group stand in more than one split: g \(test, train\)"):
        check_leaks([record("a", "g", "train"), record("b", "g", "test")])
    with pytest.raises(SourceError, match="1 of column video_id"):
        check_leaks([record("a", "g", "train"), record("a", "h", "validation")])
    with pytest.raises(SourceError, match="1 video ids stand for more than one video: a"):
        check_leaks([record("a", "g", "train"), record("a", "g", "train")])
    with pytest.raises(SourceError, match="split 'val', expected one of train, validation, test"):
        check_leaks([record("a", "g", "val")])


def test_groups_in_several_splits_stay_in_the_latest():
    listing = Listing(
        [record("a", "g", "train"), record("b", "g", "validation"), record("c", "g", "test"), record("d", "h", "train")]
    )
    drop_leaks(listing)
    assert [r.video_id for r in listing.records] == ["c", "d"]
    assert listing.left_out == [("b", "same group in test"), ("a", "same group in test or validation")]


def test_validation_is_carved_by_group_and_only_if_absent():
    records = [record(f"{n}", f"{n // 2}", "train") for n in range(2000)]
    carved = carve_validation(records)
    check_leaks(carved)
    assert 0.07 < sum(r.split == "validation" for r in carved) / 2000 < 0.13
    assert carve_validation(carved) == carved


def test_natural_order():
    assert sorted(["10.png", "9.png", "a10", "a9"], key=natural) == ["9.png", "10.png", "a9", "a10"]
