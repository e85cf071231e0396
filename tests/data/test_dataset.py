import io
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from gmdf_hf.common.errors import DomainError
from gmdf_hf.data.dataset import Domain, check_leaks, load_domain
from tests.domains import png, write_methods, write_parquet

pytestmark = pytest.mark.usefixtures("own_cache")


def test_parquet_with_all_columns(tmp_path):
    write_parquet(
        tmp_path / "d",
        video_id=[f"v{row // 4}-{row % 2}" for row in range(8)],
        group=["g"] * 8,
        frame=list(range(8)),
        caption=["a face"] * 8,
    )
    domain = load_domain("d", "train", str(tmp_path / "d"))
    assert domain.labels.tolist() == [0, 1] * 4
    assert domain.video_ids[:5] == ["v0-0", "v0-1", "v0-0", "v0-1", "v1-0"]
    assert domain.frame_numbers.tolist() == list(range(8))
    assert set(domain.groups) == {"g"}
    assert domain.captions == ["a face"] * 8
    assert len(domain) == 8
    assert domain.frames[3]["image"]["bytes"] == png(3)


def test_missing_columns_have_meaningful_stand_ins(tmp_path):
    write_parquet(tmp_path / "with", group=["x", "x", "y", "y"] * 2)
    domain = load_domain("d", "train", str(tmp_path / "with"))
    assert domain.video_ids[:4] == ["x/real", "x/fake", "y/real", "y/fake"]
    assert domain.frame_numbers.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert domain.captions is None
    write_parquet(tmp_path / "without")
    assert len(set(load_domain("d", "train", str(tmp_path / "without")).video_ids)) == 8


def test_a_folder_of_classes_is_read_by_name_not_by_number(tmp_path):
    for label, value in (("real", 10), ("fake", 200)):
        folder = tmp_path / "d" / "train" / label
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.png").write_bytes(png(value))
    domain = load_domain("d", "train", str(tmp_path / "d"))
    for row in range(6):
        stored = domain.frames[row]["image"]
        data = stored["bytes"] or Path(stored["path"]).read_bytes()
        value = np.asarray(Image.open(io.BytesIO(data))).max()
        assert domain.labels[row] == (value == 200)


def test_columns_splits_and_labels_can_be_mapped(tmp_path):
    write_parquet(
        tmp_path / "d", "dev", kind=["real", "fake"] * 4, label=[5] * 8, face=[{"bytes": png(), "path": None}] * 8
    )
    domain = load_domain(
        "d",
        "validation",
        str(tmp_path / "d" / "dev.parquet"),
        columns={"label": "kind", "image": "face"},
        splits={"validation": "dev"},
    )
    assert domain.labels.tolist() == [0, 1] * 4


def test_a_column_can_be_left_out(tmp_path):
    write_parquet(tmp_path / "d", group=["x"] * 8)
    assert len(set(load_domain("d", "train", str(tmp_path / "d"), columns={"group": None}).groups)) == 8


def test_max_videos_keeps_whole_videos_of_both_classes(tmp_path):
    write_parquet(tmp_path / "d", rows=24, video_id=[f"{row % 2}-{row // 6}" for row in range(24)])
    domain = load_domain("d", "train", str(tmp_path / "d"), max_videos=2)
    assert sorted(set(domain.video_ids)) == ["0-0", "0-1", "1-0", "1-1"]
    assert len(domain) == 12
    assert [domain.frames[row]["image"]["bytes"] for row in range(12)] == [png(row) for row in range(12)]


def test_drawn_domains_load():
    domain = load_domain("d", "validation", "drawn:swap", max_videos=3)
    assert len(set(domain.video_ids)) == 6
    assert domain.labels.mean() == 0.5
    assert domain.captions[0]


def test_videos_of_one_name_in_two_methods_are_different_ones(tmp_path):
    path = write_methods(tmp_path / "d", frame=None)
    domain = load_domain("d", "test", path)
    assert domain.methods[:9:3] == ["Deepfakes", "FaceSwap", "real"]
    assert set(domain.videos) == {(m, v) for m in ("Deepfakes", "FaceSwap", "real") for v in ("033", "034")}
    assert domain.frame_numbers.tolist() == [0, 1, 2] * 6
    few = load_domain("d", "test", path, max_videos=1)
    assert list(dict.fromkeys(few.videos)) == [("Deepfakes", "033"), ("real", "033")]
    assert len(few.methods) == len(few) == 6
    # What is not known to be another method is one: a real and a fake video cannot share a name then.
    with pytest.raises(DomainError, match="video '033' has frames labelled real and fake"):
        load_domain("d", "test", path, columns={"method": None})
    write_methods(tmp_path / "e", method=["swap"] * 18)
    with pytest.raises(DomainError, match="video '033' of method 'swap' has frames labelled"):
        load_domain("e", "test", str(tmp_path / "e"))


def test_methods_can_be_unknown(tmp_path):
    methods = [None if row % 9 > 5 else "swap" for row in range(18)]
    domain = load_domain("d", "test", write_methods(tmp_path / "d", method=methods))
    assert domain.methods[:9] == ["swap"] * 6 + [""] * 3
    write_methods(tmp_path / "e", video_id=[str(row) for row in range(18)])
    assert load_domain("e", "test", str(tmp_path / "e"), columns={"method": None}).methods is None


def test_drawings_are_drawn_anew_when_their_code_changes(monkeypatch, tmp_path):
    first = load_domain("d", "validation", "drawn:swap", max_videos=1)
    changed = tmp_path / "people.py"
    changed.write_text("# another version")
    monkeypatch.setattr("gmdf_hf.data.drawn.people.__file__", str(changed))
    again = load_domain("d", "validation", "drawn:swap", max_videos=1)
    assert first.frames.cache_files != again.frames.cache_files


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"label": [0] * 8}, {}, "split 'train', needs real and fake images, found 8 real"),
        ({"label": [3] * 8}, {}, r"must be real and fake, or 0 and 1, found 3"),
        ({}, {"columns": {"label": "target"}}, r"no column 'target' for 'label'; found \['image', 'label'\]"),
        ({"video_id": ["same"] * 8}, {}, "video 'same' has frames labelled real and fake"),
        ({}, {"split": "test"}, "no split 'test' in .*; found train"),
    ],
)
def test_unusable_domains_are_named(tmp_path, columns, arguments, message):
    write_parquet(tmp_path / "d", **columns)
    with pytest.raises(DomainError, match=f"Domain 'd'.*{message}"):
        load_domain("d", path=str(tmp_path / "d"), **{"split": "train"} | arguments)


def test_unknown_drawings_and_paths_are_named(tmp_path, monkeypatch):
    with pytest.raises(DomainError, match=r"drawn domains are .*, found 'morph'"):
        load_domain("d", "train", "drawn:morph")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DomainError, match=r"Domain 'd': cannot load '.*/nowhere'"):
        load_domain("d", "train", str(tmp_path / "nowhere"))


def make_domain(split: str, videos: list[str], groups: list[str]) -> Domain:
    numbers = np.arange(len(videos))
    return Domain("d", split, datasets.Dataset.from_dict({}), numbers % 2, videos, numbers, groups, None)


def test_leaks_between_splits_are_refused():
    train = make_domain("train", ["a", "b"], ["g", "h"])
    check_leaks([train, make_domain("test", ["c", "d"], ["i", "j"])])
    with pytest.raises(DomainError, match="video 'a' stands in the splits 'train' and 'test'"):
        check_leaks([train, make_domain("test", ["a", "d"], ["i", "j"])])
    fakes = replace(train, methods=["Deepfakes", "real"])
    with pytest.raises(DomainError, match="video 'a' stands in the splits 'train' and 'test'"):
        check_leaks(
            [fakes, replace(fakes, split="test", video_ids=["a", "c"], methods=["FaceSwap", "real"], groups=["i", "j"])]
        )
    with pytest.raises(DomainError, match="group 'h' stands in the splits 'train' and 'validation'"):
        check_leaks([train, make_domain("validation", ["c", "d"], ["h", "j"])])


def test_real_faces_load(real_data):
    domain = load_domain("stylegan", "validation", str(real_data / "faces" / "stylegan"))
    assert len(domain) == 200
    assert domain.labels.sum() == 100
    check_leaks([load_domain("d", s, str(real_data / "faces" / "dfdc")) for s in ("train", "validation", "test")])
