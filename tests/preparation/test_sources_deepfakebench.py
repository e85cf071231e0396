import json

import pytest

from gmdf_hf.common.errors import SourceError
from gmdf_hf.preparation.sources.deepfakebench import list_records, write_index
from gmdf_hf.preparation.sources.record import Record, check_leaks
from tests.media import counts


def touch(root, names):
    for name in names:
        path = root / name.replace("\\", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def entry(label, folder, frames=("000", "005", "010"), slash="/"):
    return {"label": label, "frames": [f"{folder}/{frame}.png".replace("/", slash) for frame in frames], "masks": []}


def test_celebdf_leak_is_found_removed_and_counted(tmp_path):
    real = {f"id{n // 10}_{n % 10:04}": 0 for n in range(590)} | {f"{n:05}": 0 for n in range(300)}
    fake = [f"id{n // 10}_id60_{n % 10:04}" for n in range(590)]
    tested_real, tested_fake = list(real)[480:590] + list(real)[-68:], fake[250:590]
    index = {
        "Celeb-DF-v2": {
            label: {
                "train": {name: entry(label, f"Celeb-DF-v2/{label}/frames/{name}") for name in train},
                "val": {name: entry(label, f"Celeb-DF-v2/{label}/frames/{name}") for name in tested},
                "test": {name: entry(label, f"Celeb-DF-v2/{label}/frames/{name}") for name in tested},
            }
            for label, train, tested in (
                ("CelebDFv2_real", real, tested_real),
                ("CelebDFv2_fake", fake, tested_fake),
            )
        }
    }
    (tmp_path / "Celeb-DF-v2.json").write_text(json.dumps(index))
    touch(tmp_path, [f for s in index["Celeb-DF-v2"].values() for v in s["train"].values() for f in v["frames"]])
    listing = list_records(tmp_path / "Celeb-DF-v2.json", tmp_path)
    check_leaks(listing.records)
    assert "518 train videos dropped: same video in test or validation." in listing.notes
    assert "518 validation videos dropped: same video in test." in listing.notes
    found = counts(listing)
    assert found["test", "real"] == 178 and found["test", "CelebDFv2_fake"] == 340
    assert found["validation", "real"] > 0  # carved out of training, as `val` was the test set
    tested = {record.video_id for record in listing.records if record.split == "test"}
    assert not tested & {record.video_id for record in listing.records if record.split != "test"}


def test_faceforensics_with_compression_and_back_slashes(tmp_path):
    def videos(label, names):
        return {name: entry(label, f"FaceForensics++/{label}/c23/frames/{name}", slash="\\") for name in names}

    index = {
        "FaceForensics++": {
            "FF-real": {
                "train": {"c23": videos("FF-real", ["000", "001"]), "c40": videos("FF-real", [])},
                "test": {"c23": videos("FF-real", ["002", "003"]), "c40": videos("FF-real", [])},
            },
            **{
                label: {
                    "train": {"c23": videos(label, ["000_001", "001_000"]), "c40": {}},
                    "test": {"c23": videos(label, ["002_003"]), "c40": {}},
                }
                for label in ("FF-DF", "FF-NT")
            },
        }
    }
    path = tmp_path / "FaceForensics++.json"
    path.write_text(json.dumps(index))
    touch(
        tmp_path,
        [
            f
            for s in index["FaceForensics++"].values()
            for c in s.values()
            for v in c["c23"].values()
            for f in v["frames"]
        ],
    )
    listing = list_records(path, tmp_path)
    check_leaks(listing.records)
    assert len(listing.records) == 2 + 4 + 2 + 2 and not listing.left_out
    by_id = {record.video_id: record for record in listing.records}
    assert by_id["FF-DF/000_001"].group == by_id["FF-NT/001_000"].group == by_id["FF-real/001"].group
    assert by_id["FF-real/002"].group != by_id["FF-real/001"].group
    assert by_id["FF-DF/002_003"].members[1] == "FaceForensics++/FF-DF/c23/frames/002_003/005.png"
    with pytest.raises(SourceError, match="Compression 'raw' is not in the index, found c23, c40"):
        list_records(path, tmp_path, "raw")


def test_written_index_reads_back(tmp_path):
    records = [
        Record(
            tmp_path,
            label,
            method,
            f"{label_name}/{n:03}",
            f"{n:03}",
            split,
            (f"X/{method}/{n}/000.png", f"X/{method}/{n}/007.png"),
        )
        for n, split in enumerate(["train", "train", "validation", "test"])
        for label, method, label_name in ((0, "real", "roop_Real"), (1, "roop", "roop_Fake"))
    ]
    touch(tmp_path, [name for record in records for name in record.members])
    names = {"real": "roop_Real", "roop": "roop_Fake"}
    for compression in (None, "c23"):
        write_index(tmp_path / "roop.json", "roop", records, names, compression)
        content = json.loads((tmp_path / "roop.json").read_text())["roop"]
        video = (content["roop_Fake"]["val"] if compression is None else content["roop_Fake"]["val"]["c23"])["002"]
        assert video == {"label": "roop_Fake", "frames": ["X/roop/2/000.png", "X/roop/2/007.png"]}
        read = list_records(tmp_path / "roop.json", tmp_path)
        key = lambda r: (r.video_id, r.label, r.split, r.members, r.group)  # noqa: E731
        assert sorted(map(key, read.records)) == sorted(map(key, records))
    with pytest.raises(SourceError, match="Method 'roop' has label name None"):
        write_index(tmp_path / "roop.json", "roop", records, {"real": "roop_Real"})
    with pytest.raises(SourceError, match="Method 'roop' has label name 'FF-real'"):
        write_index(tmp_path / "roop.json", "roop", records, {"real": "roop_Real", "roop": "FF-real"})


def test_invalid_indices_are_refused(tmp_path):
    path = tmp_path / "x.json"
    for content, message in (
        ("[]", "expected an object of data sets, found list"),
        ("{", "cannot be read as JSON"),
        ({"D": {"F": {"train": {"v": {"frames": ["../../etc/passwd"]}}}}}, "is not a path below the folder"),
        ({"D": {"F": {"train": {"v": {"frames": ["C:\\x\\1.png"]}}}}}, "is not a path below the folder"),
        ({"D": {"F": {"training": {"v": {"frames": []}}}}}, "split 'training', expected one of train, val, test"),
        ({"D": {"F": {"train": {"v": {"frames": ["1.png"]}}}}}, "none of its frames is in"),
    ):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(SourceError, match=message):
            list_records(path, tmp_path)
