"""The pipeline must look at the faces that `prepare` trains on."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmdf_hf.preparation.crops import CropSettings, make_crops, perceptual_hash
from gmdf_hf.preparation.faces import Face
from gmdf_hf.preparation.media import Media, open_media
from gmdf_hf.preparation.persons import find_people, load_finder
from gmdf_hf.preparation.video import Frame


def two_people(number: int) -> np.ndarray:
    pixels = np.full((120, 200, 3), 90, np.uint8)
    rng = np.random.default_rng(0)
    pixels[20:80, 10 + number : 70 + number] = rng.integers(0, 255, (60, 60, 3))
    pixels[30:70, 130:170] = rng.integers(0, 255, (40, 40, 3))
    return pixels


def sees_both(pixels: np.ndarray) -> list[Face]:
    left = int(np.flatnonzero(pixels[50].std(-1) > 0)[0])
    return [Face((130.0, 30.0, 170.0, 70.0), None, 0.9), Face((left, 20.0, left + 60.0, 80.0), None, 0.9)]


def given(pictures) -> Media:
    frames = [Frame(number, number / 25, pixels) for number, pixels in enumerate(pictures)]
    return Media(lambda numbers: iter([f for f in frames if numbers is None or f.number in numbers]))


def test_people_are_told_apart_and_the_prominent_one_is_first():
    found = find_people(sees_both, given(two_people(number) for number in range(4)), 32)
    faces = found.faces
    assert [(face.person, face.frame) for face in faces] == [(p, f) for p in (0, 1) for f in range(4)]
    assert [face.box[0] for face in faces[:4]] == [10, 11, 12, 13]
    assert [face.seconds for face in faces[:4]] == [0, 0.04, 0.08, 0.12]
    assert {face.box for face in faces[4:]} == {(130.0, 30.0, 170.0, 70.0)}
    left, top, right, bottom = faces[4].crop_box
    assert right - left == bottom - top == 52
    assert faces[0].crop.size == (32, 32)
    assert found.frames_read == 4 and not found.unassigned


def test_every_face_of_a_picture_is_somebody():
    faces = find_people(sees_both, given([two_people(0)]), 32).faces
    assert [face.person for face in faces] == [0, 1]
    assert find_people(lambda pixels: [], given([two_people(0)]), 32).faces == []
    many = [Face((20.0 * n, 10.0, 20.0 * n + 18, 30.0), None, 0.95) for n in range(9)]
    assert len({face.person for face in find_people(lambda pixels: many, given([two_people(0)]), 32).faces}) == 9


def numbered_frames(total):
    frames = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)[None].repeat(total, 0)
    frames[:, 0, 0] = 40 + np.arange(total)[:, None]
    return list(frames)


def seen_in(numbers, score):
    """A detector that finds one face in the frames of these numbers."""
    face = Face((20.0, 10.0, 50.0, 40.0), None, score)
    return lambda pixels: [face] if int(pixels[0, 0, 0]) - 40 in numbers else []


def test_two_frames_of_32_are_enough_and_a_weak_single_hit_is_counted():
    found = find_people(seen_in({3, 4}, 0.95), given(numbered_frames(32)), 32)
    assert [face.frame for face in found.faces] == [3, 4] and found.frames_read == 32
    found = find_people(seen_in({7}, 0.95), given(numbered_frames(32)), 32)
    assert [face.frame for face in found.faces] == [7] and not found.unassigned
    found = find_people(seen_in({7}, 0.65), given(numbered_frames(32)), 32)
    assert not found.faces and [(face.frame, face.person) for face in found.unassigned] == [(7, None)]


def test_frames_around_weak_hits_are_read_before_there_is_no_face():
    frames = [Frame(number, number / 25, pixels) for number, pixels in enumerate(numbered_frames(160))]
    media = Media(lambda numbers: iter([frames[n] for n in (range(0, 160, 10) if numbers is None else numbers)]))
    found = find_people(seen_in(range(77, 84), 0.7), media, 32)
    assert [face.frame for face in found.faces] == [78, 80, 82] and found.frames_read == 24
    assert found.notes == ["8 more frames were read around weak hits of the face detector."]
    found = find_people(seen_in({80}, 0.7), media, 32)
    assert not found.faces and len(found.unassigned) == 1


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_face_is_found_once_and_its_box_is_that_of_the_picture_as_it_came(turns):
    upright = np.zeros((60, 80, 3), np.uint8)
    upright[10:40, 20:50] = np.linspace(60, 255, 30, dtype=np.uint8)[:, None, None]  # bright below

    def sees_upright(pixels):
        rows, columns = np.nonzero(pixels[..., 0])
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        inside = pixels[top:bottom, left:right, 0].astype(int)
        good = inside[-1].mean() > 240 and inside[0].mean() < 80
        return [Face((float(left), float(top), float(right), float(bottom)), None, 0.95)] if good else []

    pixels = np.ascontiguousarray(np.rot90(upright, -turns))
    found = find_people(sees_upright, given([pixels]), 32)
    (face,) = found.faces
    assert face.turned == 90 * turns and "turning the picture" in found.notes[0]
    rows, columns = np.nonzero(pixels[..., 0])
    assert face.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.asarray(face.crop)[-6, 16, 0] > np.asarray(face.crop)[6, 16, 0]  # the crop is upright
    assert not find_people(sees_upright, given([upright]), 32).notes


def test_person_0_is_the_one_that_prepare_follows(real_data):
    detector = str(real_data.parent / "models" / "yunet_n_dynamic.onnx")
    for name in ("real/ffpp_c23_519.mp4", "several_faces.mp4"):
        media = open_media(Path(real_data / "videos" / name), 6)
        found = load_finder("yunet", detector)(media, 224)
        faces = [face for face in found.faces if face.person == 0]
        settings = CropSettings(frames=6, format="png")
        crops = make_crops(partial(media.read, None), load_finder("yunet", detector).args[0], settings)
        assert [row.frame for row in crops.rows] == [face.frame for face in faces]
        assert [row.hash for row in crops.rows] == [perceptual_hash(face.crop) for face in faces]
        assert isinstance(faces[0].crop, Image.Image)
