"""WildDeepfake, DeepFakeFace and the plain folder: importers whose files are images."""

import io
import os
import tarfile
import zipfile

import pytest
from PIL import Image

from gmdf_hf.common.errors import ArchiveError, EmptySourceError, SourceError
from gmdf_hf.preparation.sources import deepfakeface, folder, wilddeepfake
from gmdf_hf.preparation.sources.record import check_leaks
from gmdf_hf.serving.files import list_files
from tests.media import counts, fill, numbered, write_video


def png(color="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(("space", "base"), [("_", "deepfake_in_the_wild"), (" ", "")])
def test_wilddeepfake(tmp_path, space, base):
    content = png()
    for kind in ("real", "fake"):
        for split, tars in (("train", 30), ("test", 5)):
            (tmp_path / base / f"{kind}{space}{split}").mkdir(parents=True)
            for number in range(tars):
                path = tmp_path / base / f"{kind}{space}{split}" / f"{number}.tar.gz"
                with tarfile.open(path, "w:gz") as archive:
                    for sequence in range(2):
                        for frame in (10, 2, 1):
                            add(archive, f"./{number}/{kind}/{sequence}/{frame}.png", content)
    listing = wilddeepfake.list_records(tmp_path)
    check_leaks(listing.records)
    found = counts(listing)
    assert found["test", "real"] == found["test", "WildDeepfake"] == 10
    assert found["train", "real"] + found["validation", "real"] == 60 and found["validation", "real"] > 0
    assert listing.notes == ["WildDeepfake sequences: 140 found, 7314 in the official release."]
    first = listing.records[0]
    assert first.video_id == "real_train/0/real/0" and first.group == "real_train/0"
    assert first.members == ("0/real/0/1.png", "0/real/0/2.png", "0/real/0/10.png")


def test_wilddeepfake_leaves_strangers_out(tmp_path):
    (tmp_path / "real_train").mkdir()
    with tarfile.open(tmp_path / "real_train/1.tar.gz", "w:gz") as archive:
        for name in ("1/real/0/0.png", "1/fake/0/0.png", "1/real/0/._0.png", "readme.txt"):
            add(archive, name, png())
    listing = wilddeepfake.list_records(tmp_path)
    assert len(listing.records) == 1 and len(listing.left_out) == 3
    with tarfile.open(tmp_path / "real_train/2.tar.gz", "w:gz") as archive:
        add(archive, "../real/0/0.png", png())
    with pytest.raises(ArchiveError, match="points outside"):
        wilddeepfake.list_records(tmp_path)
    with pytest.raises(SourceError, match="No sequence found"):
        wilddeepfake.list_records(tmp_path / "real_train")


@pytest.mark.parametrize("zipped", [True, False])
def test_deepfakeface(tmp_path, zipped):
    names = [f"{person % 100:02}/{person}_1970-01-01_{year}.jpg" for person in range(100) for year in (2001, 2009)]
    for name in deepfakeface.SETS:
        if zipped:
            with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
                for member in names:
                    archive.writestr(f"{name}/{member}", png())
        else:
            for member in names:
                (tmp_path / name / member).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name / member).write_bytes(png())
    listing = deepfakeface.list_records(tmp_path)
    check_leaks(listing.records)
    assert len(listing.records) == 800 and len(listing.notes) == 4
    assert {record.method for record in listing.records} == {"real", "inpainting", "insight", "text2img"}
    assert {record.label for record in listing.records if record.method == "real"} == {0}
    one = [record for record in listing.records if record.group == "person_42"]
    assert len(one) == 8 and len({record.split for record in one}) == 1
    assert {record.split for record in listing.records} == {"train", "validation", "test"}


def test_deepfakeface_needs_a_folder_or_hub_id(tmp_path):
    with pytest.raises(SourceError, match="no folder and no hub id"):
        deepfakeface.list_records(tmp_path / "absent")
    with pytest.raises(SourceError, match="No image found"):
        deepfakeface.list_records(tmp_path)


def test_folder_with_splits(tmp_path):
    video = write_video(tmp_path / "short.mp4", numbered(2))
    root = tmp_path / "mine"
    for split in ("train", "val", "test"):
        fill(root / split / "real", ["a.mp4", "deep/b.MOV", "note.txt"], video)
        for name in ("fake/x.png", "fake/frames/10.png", "fake/frames/9.png"):
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            (root / split / name).write_bytes(png())
    listing = folder.list_records(root)
    check_leaks(listing.records)
    assert counts(listing) == {(s, method): 2 for s in ("train", "validation", "test") for method in ("real", "fake")}
    frames = next(record for record in listing.records if record.video_id == "val/fake/frames")
    assert frames.members == ("9.png", "10.png") and frames.path == root / "val/fake/frames"
    assert listing.left_out[0] == ("train/real/note.txt", "neither image nor video by its name")


def test_folder_without_splits_keeps_pairs_together(tmp_path):
    for kind in ("real", "fake"):
        (tmp_path / kind).mkdir()
        for number in range(100):
            (tmp_path / kind / f"{number}.png").write_bytes(png())
    listing = folder.list_records(tmp_path)
    check_leaks(listing.records)
    assert len({record.group for record in listing.records}) == 100
    assert 60 < counts(listing)["train", "real"] < 95
    with pytest.raises(SourceError, match="No image or video found"):
        folder.list_records(tmp_path / "real")


def test_any_name_that_a_file_can_have(tmp_path):
    """Superscripts are no digits, bytes need not be UTF-8, numbers may be long."""
    for name in ("1²3.png", "٣.png", b"caf\xe9.png".decode("utf-8", "surrogateescape"), f"{'9' * 200}.png"):
        (tmp_path / "real").mkdir(exist_ok=True)
        (tmp_path / "real" / name).write_bytes(png())
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "a.png").write_bytes(png())
    listing = folder.list_records(tmp_path)
    ids = [record.video_id for record in listing.records]
    assert {"real/1²3", "real/٣", "real/caf\\xe9", "fake/a"} < set(ids) and len(ids) == 5
    assert all(record.path.is_file() for record in listing.records)


def test_files_of_one_stem_are_two_pictures_of_one_group(tmp_path):
    for name in ("real/1.png", "real/1.jpg", "real/2.png", "fake/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    listing = folder.list_records(tmp_path)
    check_leaks(listing.records)
    assert {record.video_id for record in listing.records} == {"real/1.png", "real/1.jpg", "real/2", "fake/1"}
    assert {record.group for record in listing.records if "1" in record.video_id} == {"1"}


def test_linked_folders_are_followed_once(tmp_path):
    for name in ("data/real/x.png", "data/fake/y.png", "elsewhere/z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "data/real/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data/real/again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data/fake/loop").symlink_to(tmp_path / "data", target_is_directory=True)
    listing = folder.list_records(tmp_path / "data")
    assert {record.video_id for record in listing.records} == {"real/x", "fake/y", "real/again"}
    assert [file for file, reason in listing.left_out if "link to" in reason] == ["real/linked", "fake/loop"]


def test_folders_that_are_no_class_are_named(tmp_path):
    for name in ("A/x.png", "B/y.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png())
    with pytest.raises(SourceError, match="the folders A, B do not say whether they are real or fake"):
        folder.list_records(tmp_path)
    listing = folder.list_records(tmp_path, labels={"A": "fake", "B": "real"})
    assert {record.video_id: record.label for record in listing.records} == {"A/x": 1, "B/y": 0}
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptySourceError, match="No image or video found"):
        folder.list_records(tmp_path / "empty")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    for name in ("real/a.png", "fake/a.png", "fake/closed/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):  # the superuser, who may run the tests, may list every folder
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = folder.list_records(tmp_path)
    assert len(listing.records) == 2 and ("fake/closed", "cannot be listed (Permission denied)") in listing.left_out
    assert str(tmp_path / "fake/closed") in list_files([str(tmp_path)])
