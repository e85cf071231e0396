import json

import pytest

from gmdf_hf.common.errors import SourceError
from gmdf_hf.preparation.sources.faceforensics import METHODS, list_records
from gmdf_hf.preparation.sources.record import check_leaks
from tests.media import counts, fill, numbered, write_video

# The official lists are 360/70/70 pairs over the numbers 000 to 999; here (0, 500), (1, 501), ...
PAIRS = [[f"{n:03}", f"{n + 500:03}"] for n in range(500)]
SPLITS = {"train": PAIRS[:360], "val": PAIRS[360:430], "test": PAIRS[430:]}


def build(root, video, methods=METHODS[:4], compression="c23", lists="splits"):
    (root / lists).mkdir(parents=True)
    for name, pairs in SPLITS.items():
        (root / lists / f"{name}.json").write_text(json.dumps(pairs))
    fill(root / f"original_sequences/youtube/{compression}/videos", [f"{n:03}.mp4" for n in range(1000)], video)
    names = [f"{a}_{b}.mp4" for pair in PAIRS for a, b in (pair, pair[::-1])]
    for method in methods:
        fill(root / f"manipulated_sequences/{method}/{compression}/videos", names, video)
    return root


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "short.mp4", numbered(2))


def test_official_tree(tmp_path, video):
    listing = list_records(build(tmp_path / "ff", video))
    assert not listing.notes and not listing.left_out
    assert counts(listing) == {
        (split, method): number
        for split, number in (("train", 720), ("validation", 140), ("test", 140))
        for method in ("real", *METHODS[:4])
    }
    check_leaks(listing.records)
    by_id = {record.video_id: record for record in listing.records}
    pair = [by_id[name] for name in ("real/000", "real/500", "Deepfakes/000_500", "FaceSwap/500_000")]
    assert {record.group for record in pair} == {"000_500"} and {record.split for record in pair} == {"train"}
    assert [record.label for record in pair] == [0, 0, 1, 1]


def test_videos_of_equal_name_in_different_methods_stay_apart(tmp_path, video):
    listing = list_records(build(tmp_path / "ff", video))
    same = [record for record in listing.records if record.path.name == "000_500.mp4"]
    assert len(same) == len({record.video_id for record in same}) == len({record.path for record in same}) == 4


@pytest.mark.parametrize("lists", [".", "splits", "dataset/splits"])
def test_methods_compression_and_place_of_the_lists(tmp_path, video, lists):
    root = build(tmp_path / "ff", video, ["FaceSwap", "FaceShifter"], "c40", lists)
    listing = list_records(root, ["FaceShifter"], "c40")
    assert {method for _, method in counts(listing)} == {"real", "FaceShifter"}
    assert all("/c40/" in str(record.path) for record in listing.records)
    with pytest.raises(SourceError, match="No video found"):
        list_records(root, ["FaceSwap"], "c23")


def test_raw_may_be_called_c0(tmp_path, video):
    listing = list_records(build(tmp_path / "ff", video, ["FaceSwap"], "c0"), ["FaceSwap"], "raw")
    assert len(listing.records) == 2000


def test_missing_and_unlisted_videos_are_named(tmp_path, video):
    root = build(tmp_path / "ff", video, ["FaceSwap"])
    folder = root / "manipulated_sequences/FaceSwap/c23/videos"
    (folder / "000_500.mp4").unlink()
    (folder / "007_008.mp4").hardlink_to(video)
    listing = list_records(root, ["FaceSwap"])
    reasons = dict(listing.left_out)
    assert reasons["manipulated_sequences/FaceSwap/c23/videos/000_500.mp4"] == "listed but not on disk"
    assert reasons["manipulated_sequences/FaceSwap/c23/videos/007_008.mp4"] == "in no official split list"
    assert any("FaceSwap train: 1 listed but not on disk" in note and "000_500" in note for note in listing.notes)
    assert any("in no split list: 007_008" in note for note in listing.notes)


def test_dfd_is_split_by_the_person_shown(tmp_path, video):
    root = tmp_path / "ff"
    scenes = ["exit_phone_room", "podium_speech_happy"]
    actors = [f"{n:02}" for n in range(1, 29)]
    fill(root / "original_sequences/actors/c23/videos", [f"{a}__{s}.mp4" for a in actors for s in scenes], video)
    fakes = [f"{a}_{b}__{scenes[0]}__AB12CD3{b[1]}.mp4" for a in actors for b in actors[:9] if a != b]
    fill(root / "manipulated_sequences/DeepFakeDetection/c23/videos", fakes, video)
    listing = list_records(root, ["DeepFakeDetection"])
    check_leaks(listing.records)
    assert len(listing.records) == 56 + len(fakes)
    assert {record.split for record in listing.records} == {"train", "validation", "test"}
    assert {r.group for r in listing.records if "/03_" in r.video_id} == {"actor_03"}
    assert any("56 found, 363 in the official release" in note for note in listing.notes)


def test_error_messages_name_the_cause(tmp_path, video):
    with pytest.raises(SourceError, match=r"train\.json not found"):
        list_records(tmp_path)
    with pytest.raises(SourceError, match=r"methods \['Deepfake'\], expected some of Deepfakes"):
        list_records(tmp_path, ["Deepfake"])
    with pytest.raises(SourceError, match="compression 'c24', expected one of"):
        list_records(tmp_path, compression="c24")
    with pytest.raises(SourceError, match="is no folder"):
        list_records(tmp_path / "absent")
    (tmp_path / "train.json").write_text('[["../../etc", "001"]]')
    with pytest.raises(SourceError, match="expected three digits"):
        list_records(tmp_path)
