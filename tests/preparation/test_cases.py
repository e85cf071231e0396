"""Files that users reported elsewhere and that went wrong here, each with the right answer.

They show real people and stay where they are: GMDF_REAL_DATA names the folder.
"""

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gmdf_hf.data.dataset import load_domain
from gmdf_hf.data.streams import load_stream, stream_frames
from gmdf_hf.preparation.crops import CropSettings, make_crops
from gmdf_hf.preparation.media import open_media
from gmdf_hf.preparation.persons import load_finder
from gmdf_hf.preparation.pictures import read_pictures
from gmdf_hf.preparation.prepare import prepare
from gmdf_hf.preparation.sources import faceforensics, folder
from gmdf_hf.preparation.sources.record import Record
from gmdf_hf.preparation.video import VideoError


@pytest.fixture
def cases(real_data):
    return real_data / "cases"


@pytest.fixture
def finder(real_data):
    return load_finder("yunet", str(real_data.parent / "models/yunet_n_dynamic.onnx"))


def look(finder, path, frames=32):
    return finder(open_media(path, frames, allow_cut=True), 224)


def people(found):
    return {face.person for face in found.faces}


def test_row_1_capital_labels(cases):
    path = str(cases / "folders/capital_labels")
    domain = load_domain("d", "train", path)
    names = [Path(stored["path"]).parent.name for stored in domain.frames["image"]]
    assert domain.labels.tolist() == [int(name == "Fake") for name in names] and len(set(names)) == 2
    assert sorted(frame.label for frame in stream_frames(load_stream("d", "train", path))) == [0, 0, 0, 1, 1, 1]
    listing = folder.list_records(path)
    assert all(record.label == ("/Fake/" in record.video_id) for record in listing.records)


def test_row_2_a_face_in_2_of_32_frames(cases, finder):
    found = look(finder, cases / "video/face_6_percent.mp4")
    assert found.frames_read == 32 and len(found.faces) == 2 and people(found) == {0}


def test_row_3_twelve_people_one_after_the_other(cases, finder):
    found = look(finder, cases / "video/montage_12_persons.mp4")
    assert len(people(found)) == 12 and len(found.faces) + len(found.unassigned) == 32


def test_row_4_twelve_faces(cases, finder):
    found = look(finder, cases / "picture/twelve_faces.jpg")
    assert len(found.faces) == len(people(found)) == 12


@pytest.mark.parametrize("masks", [True, False])
def test_row_5_the_face_that_meets_the_mask(cases, real_data, tmp_path, masks):
    listing = faceforensics.list_records(cases / "folders/dfd", ["DeepFakeDetection"])
    if not masks:
        for record in listing.records:
            object.__setattr__(record, "mask", None)
    weights = real_data.parent / "models/yunet_n_dynamic.onnx"
    summary = prepare(listing, tmp_path / "d", "faceforensics", CropSettings(frames=8), weights=weights)
    assert summary["doubtful_videos"] == int(not masks)
    rows = [row for file in (tmp_path / "d/data").glob("*") for row in pq.read_table(file).to_pylist()]
    fakes = [row for row in rows if row["label"] == 1]
    assert len(fakes) == 8 and ("mask" in fakes[0]) is masks
    if masks:
        for row in fakes:
            mask = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
            assert (mask[64:160, 64:160] > 127).mean() > 0.5  # it lies on the face


def test_row_6_square_pixels(cases):
    squeezed = next(open_media(cases / "video/sar_16_11.mp4", 1).read(None)).pixels
    square = next(open_media(cases / "video/sar_1_1.MP4", 1).read(None)).pixels
    assert squeezed.shape == square.shape == (480, 640, 3)
    assert np.abs(squeezed.astype(int) - square).mean() < 4


def test_row_7_frames_that_repeat_the_one_before(cases):
    frames = list(open_media(cases / "video/vfr_gap.avi", 100).read(None))
    assert len(frames) == 24 and frames[-1].seconds == pytest.approx(143 / 25)


def test_row_8_a_download_that_was_cut_off(cases, finder):
    found = look(finder, cases / "video/aborted_99pct.mp4")
    assert len(found.faces) == 32 and "cut short, 746 whole frames found of 751" in found.notes[0]
    record = Record(cases / "video/aborted_99pct.mp4", 0, "real", "v", "g", "train")
    with pytest.raises(VideoError, match="cut short, 746 whole frames found of 751"):
        list(read_pictures(record, 8))


@pytest.mark.parametrize("count", [1, 2, 7, 32, 100])
def test_row_9_one_answer_whatever_the_number_of_frames(cases, count):
    assert len(list(open_media(cases / "video/damaged_middle.mp4", count).read(None))) == count


@pytest.mark.parametrize("suffix", [".m2ts", ".mts", ".m2t", ".jpg", ""])
def test_row_10_content_decides(cases, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.symlink_to(cases / "video/a.m2ts")
    assert len(list(open_media(path, 32).read(None))) == 24


def test_row_11_an_animation_is_a_video(cases, finder):
    found = look(finder, cases / "picture/face_after_title.gif")
    assert found.frames_read > 1 and [face.frame for face in found.faces] == [1]


def test_rows_14_and_15_names(cases):
    for name, ids in (
        ("superscript", {"real/1²3", "fake/a"}),
        ("same_stem", {"real/1.png", "real/1.jpg", "fake/2"}),
    ):
        assert {record.video_id for record in folder.list_records(cases / "folders" / name).records} == ids


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_row_22_turned_by_any_quarter(cases, finder, tmp_path, turns):
    image = Image.open(cases / "picture/rotated_90_no_exif.jpg").rotate(90 * turns, expand=True)
    image.save(tmp_path / "turned.png")
    found = look(finder, tmp_path / "turned.png")
    (face,) = found.faces
    assert face.turned == (270 - 90 * turns) % 360 and len(found.notes) == bool(face.turned)


def test_row_22_prepare_turns_too(cases, real_data, tmp_path):
    for name in ("real", "fake"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(cases / "picture/rotated_90_no_exif.jpg", tmp_path / "in" / name / f"{name}.jpg")
    weights = real_data.parent / "models/yunet_n_dynamic.onnx"
    listing = folder.list_records(tmp_path / "in")
    summary = prepare(listing, tmp_path / "out", "folder", CropSettings(), weights=weights)
    assert sorted(summary["turned"]) == ["fake/fake (270 degrees)", "real/real (270 degrees)"]
    assert sum(counts["rows"] for counts in summary["splits"].values()) == 2
    assert "found only after a turn by quarters: 2." in (tmp_path / "out/README.md").read_text()


def test_row_24_no_intact_key_frame_is_said(cases):
    for count in (1, 8, 32):
        with pytest.raises(VideoError, match="none starts from an undamaged key frame"):
            list(open_media(cases / "video/live.ts", count, allow_cut=True).read(None))


def test_row_25_colours(cases):
    pixels = next(open_media(cases / "video/untagged_709.mp4", 1).read(None)).pixels.reshape(-1, 3)
    expected = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (120, 120, 120)]
    for color in expected:
        assert np.abs(pixels.astype(int) - color).max(1).min() <= 2
    toned = next(open_media(cases / "video/hlg.mp4", 1).read(None)).pixels
    truth = next(open_media(cases / "video/sar_1_1.MP4", 1).read(None)).pixels  # of the same scene, in SDR
    assert abs(toned.std() - truth.std()) < 0.2 * truth.std()


def test_prepare_refuses_the_cut_file_and_keeps_the_others(cases, real_data):
    detector = load_finder("yunet", str(real_data.parent / "models/yunet_n_dynamic.onnx")).args[0]
    record = Record(cases / "video/face_6_percent.mp4", 0, "real", "v", "g", "train")
    crops = make_crops(lambda: read_pictures(record, 32), detector, CropSettings())
    assert not crops.rows and "nobody is seen in 10% of the frames, the most in 2" in {why for _, why in crops.lost}
