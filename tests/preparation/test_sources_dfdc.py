import csv
import json

import pytest

from gmdf_hf.common.errors import SourceError
from gmdf_hf.preparation.sources.dfdc import list_records
from gmdf_hf.preparation.sources.record import check_leaks
from tests.media import counts, fill, numbered, write_video


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "short.mp4", numbered(2))


def build_parts(root, video, parts=range(50)):
    for part in parts:
        metadata = {f"real{part}.mp4": {"label": "REAL", "split": "train"}}
        for n in range(3):
            metadata[f"fake{part}{'abc'[n]}.mp4"] = {"label": "FAKE", "split": "train", "original": f"real{part}.mp4"}
        folder = root / f"dfdc_train_part_{part}"
        fill(folder, metadata, video)
        (folder / "metadata.json").write_text(json.dumps(metadata))
    return root


def test_training_parts(tmp_path, video):
    listing = list_records(build_parts(tmp_path / "dfdc", video))
    check_leaks(listing.records)
    assert not listing.notes and not listing.left_out
    assert counts(listing) == {
        (split, method): number * times
        for split, number in (("train", 35), ("validation", 5), ("test", 10))
        for method, times in (("real", 1), ("DFDC", 3))
    }
    assert {record.group for record in listing.records if "dfdc_train_part_7/" in str(record.path)} == {"real7"}


def test_training_parts_with_gaps(tmp_path, video):
    root = build_parts(tmp_path / "dfdc", video, range(4))
    (root / "dfdc_train_part_2/fake2b.mp4").unlink()
    (root / "dfdc_train_part_3/other.mp4").hardlink_to(video)
    listing = list_records(root)
    assert set(listing.left_out) == {
        ("dfdc_train_part_2/fake2b.mp4", "listed but not on disk"),
        ("dfdc_train_part_3/other.mp4", "not in metadata.json"),
    }
    assert "DFDC training parts: 4 found, 50 in the official release." in listing.notes


@pytest.mark.parametrize("inside", ["", "test"])
@pytest.mark.parametrize("form", ["labels.csv", "metadata.json", "is_fake"])
def test_test_set(tmp_path, video, inside, form):
    folder = tmp_path / "dfdc" / inside
    names = [f"v{n}.mp4" for n in range(20)]
    fill(folder, names, video)
    if form == "labels.csv":
        with (folder / form).open("w", newline="") as file:
            csv.writer(file).writerows([("filename", "label"), *((name, n % 2) for n, name in enumerate(names))])
    elif form == "metadata.json":
        content = {name: {"label": ["REAL", "FAKE"][n % 2]} for n, name in enumerate(names)}
        (folder / form).write_text(json.dumps(content))
    else:
        content = {name: {"is_fake": n % 2, "augmentations": []} for n, name in enumerate(names)}
        (folder / "metadata.json").write_text(json.dumps(content))
    listing = list_records(tmp_path / "dfdc")
    assert counts(listing) == {("test", "real"): 10, ("test", "DFDC"): 10}
    assert {record.label for record in listing.records if int(record.video_id[1:]) % 2} == {1}
    assert listing.notes == ["DFDC test set: 20 found, 5000 in the official release."]


def test_preview(tmp_path, video):
    root = tmp_path / "dfdcp"
    content = {}
    for person in range(30):
        split = "test" if person >= 25 else "train"
        content[f"original_videos/{person}/{person}_A_001.mp4"] = {"label": "real", "set": split}
        content[f"method_A/{person}/{person}_B_0_1.mp4"] = {"label": "fake", "set": split}
        content[f"method_B/{person}/{person}_B_0_1.mp4"] = {"label": "fake", "set": split}
    content["method_A/28/28_C_0_1.mp4"] = {"label": "fake", "set": "train"}  # a person of the test split
    fill(root, content, video)
    (root / "dataset.json").write_text(json.dumps(content))
    listing = list_records(root)
    check_leaks(listing.records)
    found = counts(listing)
    assert found["test", "real"] == found["test", "DFDCP method_A"] == found["test", "DFDCP method_B"] == 5
    assert found["train", "real"] + found["validation", "real"] == 25
    assert listing.left_out == [("method_A/28/28_C_0_1", "same group in test or validation")]


def test_error_messages_name_the_cause(tmp_path, video):
    with pytest.raises(SourceError, match="no DFDC release"):
        list_records(tmp_path)
    root = build_parts(tmp_path / "dfdc", video, [0])
    (root / "dataset.json").write_text("{}")
    with pytest.raises(SourceError, match="training parts and preview"):
        list_records(root)
    (root / "dataset.json").unlink()
    metadata = root / "dfdc_train_part_0/metadata.json"
    for content, message in (
        ("[]", "an object of one object per video"),
        ("{", "no JSON"),
        ('{"a.mp4": {"label": "MAYBE"}}', "label 'MAYBE', expected REAL or FAKE"),
        ('{"a.mp4": {"label": "FAKE"}}', "names no original"),
        ('{"../../a.mp4": {"label": "REAL"}}', "expected a plain file name"),
    ):
        metadata.write_text(content)
        with pytest.raises(SourceError, match=message):
            list_records(root)
