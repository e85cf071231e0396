import hashlib
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gmdf_hf.common.errors import DetectorError
from gmdf_hf.preparation import detectors, faces
from gmdf_hf.preparation.detectors import load_detector
from gmdf_hf.preparation.faces import Face, HubFile, find_weights, reduce_to
from gmdf_hf.preparation.retinaface import RetinaFace, RetinaFaceDetector, anchors, decode, suppress
from gmdf_hf.preparation.video import read_frames


@pytest.fixture(scope="module")
def real_data():
    root = os.environ.get("GMDF_REAL_DATA")
    if not root:
        pytest.skip("GMDF_REAL_DATA is not set")
    return Path(root)


@pytest.fixture(scope="module")
def yunet(real_data):
    return load_detector("yunet", real_data / "models/yunet_n_dynamic.onnx")


def test_yunet_finds_the_face_and_its_landmarks(yunet, real_data):
    pixels = next(read_frames(real_data / "data/videos/real/ffpp_c23_634.mp4", 1)).pixels
    (face,) = yunet(pixels)
    assert face.score > 0.9 and 150 < face.side < 300
    eye, other_eye, nose, mouth, other_mouth = face.landmarks
    assert eye[0] < nose[0] < other_eye[0] and mouth[0] < other_mouth[0]
    assert max(eye[1], other_eye[1]) < nose[1] < min(mouth[1], other_mouth[1])
    # The same picture at another size gives the same face.
    half = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(yunet(half)[0].scaled(2).box, face.box, atol=0.1 * face.side)


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (300, 2), (37, 41), (480, 480), (1000, 30)])
def test_yunet_takes_any_picture(yunet, shape):
    assert yunet(np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)) is not None


def test_fixed_size_export_is_padded(yunet, real_data):
    """Stands for the hub's export, which OpenCV 5 runs at 640 x 640 only."""

    class Fixed:
        def setInputSize(self, size):
            assert size == (640, 640)
            yunet.model.setInputSize(size)

        def detect(self, pixels):
            assert pixels.shape == (640, 640, 3)
            return yunet.model.detect(pixels)

    fixed = object.__new__(detectors.YuNet)
    fixed.model, fixed.fixed = Fixed(), True
    for name in ("ffpp_c23_634", "dfdc_lynaeydofd"):
        pixels = next(read_frames(real_data / f"data/videos/real/{name}.mp4", 1)).pixels
        (free,), (padded,) = yunet(pixels), fixed(pixels)
        np.testing.assert_allclose(padded.box, free.box, atol=0.12 * free.side)


def test_unreadable_model_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"hello")
    with pytest.raises(DetectorError, match=r"model\.onnx: not a YuNet model that OpenCV"):
        load_detector("yunet", tmp_path / "model.onnx")


def test_haar_where_opencv_has_it():
    if hasattr(cv2, "CascadeClassifier"):
        assert load_detector("haar")(np.zeros((100, 100, 3), np.uint8)) == []
    else:
        with pytest.raises(DetectorError, match="need OpenCV 4, found 5"):
            load_detector("haar")


def test_none_takes_the_whole_picture():
    (face,) = load_detector("none")(np.zeros((30, 40, 3), np.uint8))
    assert face.box == (0, 0, 40, 30) and face.landmarks is None
    with pytest.raises(ValueError, match="Unknown detector 'dlib', expected one of yunet, retinaface, haar, none"):
        load_detector("dlib")


def test_pinned_weights_are_checked(tmp_path, monkeypatch):
    content = b"weights"
    cached = tmp_path / "cached.onnx"
    cached.write_bytes(content)
    calls = []

    def download(repo, name, revision):
        calls.append((repo, name, revision))
        return str(cached)

    monkeypatch.setattr(faces, "hf_hub_download", download)
    file = HubFile("some/repo", "a.onnx", "1234", hashlib.sha256(content).hexdigest())
    assert find_weights(file) == cached and calls == [("some/repo", "a.onnx", "1234")]
    cached.write_bytes(b"others")
    with pytest.raises(DetectorError, match=f"SHA-256 .*, expected {file.sha256}"):
        find_weights(file)


def test_offline_without_weights_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = (
        "https://huggingface.co/opencv/face_detection_yunet/resolve/3cc26e7f1014a5ee5d74a42acee58bafc9d0a310/"
        "face_detection_yunet_2023mar.onnx .* --detector_weights PATH"
    )
    with pytest.raises(DetectorError, match=message):
        load_detector("yunet")
    with pytest.raises(DetectorError, match=r"absent\.onnx is no file"):
        load_detector("yunet", tmp_path / "absent.onnx")


def test_pictures_are_only_ever_reduced():
    pixels = np.zeros((100, 200, 3), np.uint8)
    assert reduce_to(pixels, 200)[0] is pixels
    small, factor = reduce_to(pixels, 50)
    assert small.shape == (25, 50, 3) and factor == 4


def test_retinaface_checkpoints(tmp_path):
    torch.manual_seed(0)
    network = RetinaFace()
    state = network.state_dict()
    assert sum(value.numel() for name, value in network.named_parameters()) == 426_608  # as published
    published = {f"module.{name}": value for name, value in state.items()}
    published |= {"module.body.fc.weight": torch.zeros(1000, 256), "module.body.fc.bias": torch.zeros(1000)}
    torch.save(published, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    pixels = np.random.default_rng(0).integers(0, 255, (120, 90, 3), np.uint8)
    found = [load_detector("retinaface", tmp_path / name)(pixels) for name in ("a.pth", "a.safetensors")]
    assert len(found[0]) == len(found[1])
    del state["fpn.merge1.0.weight"]
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(DetectorError, match="not a RetinaFace MobileNet"):
        RetinaFaceDetector(tmp_path / "b.safetensors")


def test_weights_that_would_run_something_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "was_here"),))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    torch.save({"state_dict": Evil()}, tmp_path / "zipped.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("evil.pth", "zipped.pth", "text.pth", "text.safetensors", "list.pth"):
        with pytest.raises(DetectorError, match=f"{name}: cannot be read as weights"):
            RetinaFaceDetector(tmp_path / name)
    assert not (tmp_path / "was_here").exists()


def test_retinaface_decoding_against_a_slow_loop():
    height, width = 75, 50
    prior, rows = anchors(height, width), []
    for stride, sides in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        for y in range(-(-height // stride)):
            for x in range(-(-width // stride)):
                rows += [((x + 0.5) * stride, (y + 0.5) * stride, side) for side in sides]
    np.testing.assert_allclose(prior, rows)
    network = RetinaFace().eval()
    boxes, logits, points = network(torch.zeros(1, 3, height, width))
    assert boxes.shape == (1, len(rows), 4) and logits.shape == (1, len(rows), 2) and points.shape == (1, len(rows), 10)
    boxes, points = torch.randn(len(rows), 4), torch.randn(len(rows), 10)
    found, landmarks = decode(boxes, points, prior)
    for (x, y, side), raw, box, raw_points, five in zip(rows, boxes, found, points, landmarks, strict=True):
        middle_x, middle_y = x + 0.1 * side * raw[0], y + 0.1 * side * raw[1]
        wide, high = side * (0.2 * raw[2]).exp(), side * (0.2 * raw[3]).exp()
        expected = [middle_x - wide / 2, middle_y - high / 2, middle_x + wide / 2, middle_y + high / 2]
        np.testing.assert_allclose(box, expected, rtol=1e-4, atol=1e-3)
        for k in range(5):
            point = [x + 0.1 * side * raw_points[2 * k], y + 0.1 * side * raw_points[2 * k + 1]]
            np.testing.assert_allclose(five[k], point, rtol=1e-4, atol=1e-3)


def test_suppression_keeps_the_best_of_each_heap():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60], [0, 0, 10, 11]], float)
    assert suppress(boxes, np.array([0.7, 0.9, 0.8, 0.95])) == [3, 2]


def test_boxes_outside_are_dropped():
    pixels = np.zeros((50, 50, 3), np.uint8)
    boxes = [(0, 0, 10, 10), (60, 0, 70, 10), (5, 5, 5, 9), (-30, -30, 5, 5)]
    assert [face.box for face in faces.inside([Face(box, None, 1.0) for box in boxes], pixels)] == [(0, 0, 10, 10)]
    assert faces.inside([Face((0, 0, 10, 10), np.full((5, 2), 3.0), 1.0)], pixels) == []
