"""The pipeline must look at the faces that `prepare` trains on."""

from pathlib import Path

import numpy as np
from PIL import Image

from gmdf_hf.preparation.crops import CropSettings, make_crops, perceptual_hash
from gmdf_hf.preparation.faces import Face
from gmdf_hf.preparation.persons import find_people, load_finder
from gmdf_hf.preparation.video import read_frames


def two_people(number: int) -> np.ndarray:
    pixels = np.full((120, 200, 3), 90, np.uint8)
    rng = np.random.default_rng(0)
    pixels[20:80, 10 + number : 70 + number] = rng.integers(0, 255, (60, 60, 3))
    pixels[30:70, 130:170] = rng.integers(0, 255, (40, 40, 3))
    return pixels


def sees_both(pixels: np.ndarray) -> list[Face]:
    left = int(np.flatnonzero(pixels[50].std(-1) > 0)[0])
    return [Face((130.0, 30.0, 170.0, 70.0), None, 0.9), Face((left, 20.0, left + 60.0, 80.0), None, 0.9)]


def test_people_are_told_apart_and_the_prominent_one_is_first():
    faces = find_people(sees_both, ((number, two_people(number)) for number in range(4)), 32)
    assert [(face.person, face.frame) for face in faces] == [(p, f) for p in (0, 1) for f in range(4)]
    assert [face.box[0] for face in faces[:4]] == [10, 11, 12, 13]
    assert {face.box for face in faces[4:]} == {(130.0, 30.0, 170.0, 70.0)}
    left, top, right, bottom = faces[4].crop_box
    assert right - left == bottom - top == 52
    assert faces[0].crop.size == (32, 32)


def test_every_face_of_a_picture_is_somebody():
    faces = find_people(sees_both, [(0, two_people(0))], 32)
    assert [face.person for face in faces] == [0, 1]
    assert find_people(lambda pixels: [], [(0, two_people(0))], 32) == []


def test_person_0_is_the_one_that_prepare_follows(real_data):
    detector = str(real_data.parent / "models" / "yunet_n_dynamic.onnx")
    for name in ("real/ffpp_c23_519.mp4", "several_faces.mp4"):
        frames = list(read_frames(Path(real_data / "videos" / name), 6))
        faces = [face for face in load_finder("yunet", detector)(frames, 224) if face.person == 0]
        settings = CropSettings(frames=6, format="png")
        crops = make_crops(frames, load_finder("yunet", detector).args[0], settings)
        assert [row[0] for row in crops.rows] == [face.frame for face in faces]
        assert [row[2] for row in crops.rows] == [perceptual_hash(face.crop) for face in faces]
        assert isinstance(faces[0].crop, Image.Image)
