"""`pipeline("deepfake-detection")` on pictures and videos."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from gmdf_hf import DeepfakeDetectionPipeline, GMDFConfig, GMDFImageProcessor, GMDFModel
from gmdf_hf.common.images import ImageError
from gmdf_hf.modeling import pipeline_gmdf
from gmdf_hf.modeling.loading_gmdf import BrokenModelError
from gmdf_hf.preparation.video import VideoError
from gmdf_hf.serving.inputs import picture_of
from gmdf_hf.training.checkpoint import save_model
from tests import processes
from tests.conftest import tiny_model
from tests.media import numbered, write_video

DINOV2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WEIGHTS = Path(os.environ.get("GMDF_REAL_DATA", "/nowhere")) / "models" / "yunet_n_dynamic.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector") / "model"
    save_model(folder, tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32), slim=True)
    return folder


@pytest.fixture(scope="module")
def detect(folder) -> DeepfakeDetectionPipeline:
    return pipeline("deepfake-detection", model=str(folder), trust_remote_code=False, detector="none")


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8))


def probability(folder: Path, image: Image.Image) -> float:
    model, processor = GMDFModel.from_pretrained(folder), GMDFImageProcessor.from_pretrained(folder)
    return model(**processor(images=image, return_tensors="pt")).logits.softmax(-1)[0, 1].item()


def test_the_package_needs_no_trust_and_knows_the_threshold(detect, folder):
    assert type(detect) is DeepfakeDetectionPipeline
    result = detect(picture())
    assert result["score"] == pytest.approx(probability(folder, picture()), abs=1e-6)
    assert result["threshold"] == 0.25
    assert result["label"] == ("fake" if result["score"] >= 0.25 else "real")
    for threshold, label in ((0.0, "fake"), (1.0, "real")):
        again = detect(picture(), threshold=threshold)
        assert (again["label"], again["threshold"], again["score"]) == (label, threshold, result["score"])
        assert again["faces"][0]["label"] == again["persons"][0]["label"] == label
    with pytest.raises(ValueError, match=r"`threshold` must lie in \[0, 1\], found 1.5"):
        detect(picture(), threshold=1.5)


def test_every_kind_of_input_gives_the_same(detect, tmp_path):
    picture().save(tmp_path / "face.png")
    expected = detect(picture())
    pixels = np.asarray(picture())
    for source in (str(tmp_path / "face.png"), tmp_path / "face.png", pixels, [picture()], (x for x in [pixels])):
        result = detect(source)
        result = result if isinstance(result, dict) else next(iter(result))
        assert result["score"] == expected["score"]
        assert result["faces"] == expected["faces"]


def test_batches_cross_files_and_frames(detect, tmp_path):
    """A face's score does not depend on its batch, and every input gets its own faces."""
    write_video(tmp_path / "seven.mp4", numbered(7))
    sources = [picture(1), tmp_path / "seven.mp4", picture(2), np.asarray(picture(3)), tmp_path / "seven.mp4"]
    alone = [detect(source, batch_size=1) for source in sources]
    assert [len(result["faces"]) for result in alone] == [1, 7, 1, 1, 7]
    for size in (2, 4, 64):
        together = detect(sources, batch_size=size)
        for one, other in zip(alone, together, strict=True):
            assert [face["frame"] for face in one["faces"]] == [face["frame"] for face in other["faces"]]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert alone[1]["score"] == pytest.approx(np.mean([face["score"] for face in alone[1]["faces"]]))
    assert detect(tmp_path / "seven.mp4", num_frames=3)["frames_read"] == 3


def test_the_experts_shares_are_the_models(detect, folder):
    result = detect(picture())
    model, processor = GMDFModel.from_pretrained(folder), GMDFImageProcessor.from_pretrained(folder)
    output = model(**processor(images=picture(), return_tensors="pt"), output_expert_weights=True)
    expected = sum(block[0] for block in output.expert_weights) / len(output.expert_weights)
    assert list(result["expert_weights"]) == ["a", "b", "c"]
    np.testing.assert_allclose(list(result["expert_weights"].values()), expected.detach(), atol=1e-6)
    assert sum(result["expert_weights"].values()) == pytest.approx(1)


def test_a_heatmap_covers_the_crop_and_changes_no_score(detect):
    plain, mapped = detect(picture()), detect([picture(), picture(1)], return_heatmap=True)
    assert "heatmap" not in plain["faces"][0]
    assert mapped[0]["score"] == pytest.approx(plain["score"], abs=1e-6)
    maps = [result["faces"][0]["heatmap"] for result in mapped]
    assert maps[0].shape == (32, 32)
    assert np.abs(maps[0]).max() == pytest.approx(1, abs=0.2)
    assert not np.allclose(*maps)


def find_nobody(media):
    hits = [{"frame": frame.number, "box": [0.0, 0.0, 9.0, 9.0]} for frame in media.read(None)]
    return [], {"frames_read": len(hits), "unassigned_faces": hits}


def test_no_face_is_no_verdict(detect, monkeypatch):
    monkeypatch.setattr(detect, "_finders", {("none", None): find_nobody})
    for result in (detect(picture()), *detect([picture(), picture()], batch_size=2)):
        assert result["face_found"] is False
        assert result["label"] is None and result["score"] is None
        assert result["faces"] == [] and result["persons"] == [] and result["expert_weights"] == {}
        assert result["frames_read"] == result["faces_found"] == 1 and result["faces_scored"] == 0
        assert result["unassigned_faces"] == [{"frame": 0, "box": [0.0, 0.0, 9.0, 9.0]}]


def test_a_broken_input_is_named_or_returned(detect, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(ImageError, match=r"broken\.png: not a readable image"):
        detect(str(tmp_path / "broken.png"))
    with pytest.raises(VideoError, match=r"broken\.mp4: not a readable video"):
        detect(str(tmp_path / "broken.mp4"))
    sources = [picture(), tmp_path / "broken.png", tmp_path / "broken.mp4", tmp_path / "none.png", 3, picture()]
    sources += ["file:///etc/hostname", "http://127.0.0.1/face.png", np.zeros((3, 3), np.float32)]
    results = detect(sources, on_error="return", batch_size=4)
    assert [result["error"] is None for result in results] == [True, *[False] * 4, True, *[False] * 3]
    assert [result["label"] is None for result in results] == [result["error"] is not None for result in results]
    assert "no such file" in results[3]["error"]
    assert "found int" in results[4]["error"]
    assert "only http: and https:" in results[6]["error"]
    assert "public internet" in results[7]["error"]
    assert "uint8" in results[8]["error"]
    with pytest.raises(ValueError, match="`on_error` must be"):
        detect(picture(), on_error="ignore")


ELSEWHERE = """
import json, sys
sys.modules["gmdf_hf"] = None
from transformers import pipeline
detect = pipeline("deepfake-detection", model=sys.argv[1], trust_remote_code=True)
assert "gmdf_hf" not in type(detect).__module__
print(json.dumps(detect([sys.argv[2], sys.argv[3:]])))  # a picture, and the frames of a video
detect = pipeline(model=sys.argv[1], trust_remote_code=True)  # the folder says which task it is for
detect.save_pretrained(sys.argv[1] + "-again")
again = pipeline("deepfake-detection", model=sys.argv[1] + "-again", trust_remote_code=True, detector="none")
assert again(sys.argv[2])["score"] == detect(sys.argv[2])["score"]
try:
    detect(sys.argv[2], detector="yunet")
except ImportError as error:
    print(error)
"""


def test_without_the_package_pictures_are_crops_and_a_warning_says_so(detect, folder, tmp_path):
    files = [str(tmp_path / f"{seed}.png") for seed in range(4)]
    for seed, file in enumerate(files):
        picture(seed).save(file)
    result = processes.run("-P", "-c", ELSEWHERE, folder, *files, cwd=tmp_path, warm=processes.LIBRARIES)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Every picture is taken for the crop of one face" in result.stderr
    answers, last = result.stdout.strip().splitlines()
    for here, there in zip(detect([files[0], files[1:]]), json.loads(answers), strict=True):
        assert there["score"] == pytest.approx(here["score"], abs=1e-6)
        assert there["expert_weights"] == pytest.approx(here["expert_weights"], abs=1e-6)
        assert {name: there[name] for name in ("label", "threshold")} == {
            name: here[name] for name in ("label", "threshold")
        }
        assert there.keys() <= here.keys()
        for ours, theirs in zip(here["faces"], there["faces"], strict=True):
            assert theirs == {"frame": ours["frame"], "score": pytest.approx(ours["score"], abs=1e-6)}
    assert [len(there["faces"]) for there in json.loads(answers)] == [1, 3]
    assert "pip install 'gmdf-hf[prepare]'" in last


def test_the_checkpoints_reader_gives_the_packages_pixels_or_rejects():
    """The small reader that travels must not read a picture in another way than the package."""
    exif = Image.Exif()
    exif[274] = 6  # orientation
    for mode in ("1", "L", "P", "RGB", "CMYK", "RGBA", "LA", "I;16", "F"):
        source = picture().convert("L").convert(mode) if mode == "I;16" else picture().convert(mode)
        source.info["exif"] = exif.tobytes()
        if mode in pipeline_gmdf.MODES:
            pixels = pipeline_gmdf.picture_of(source)
            np.testing.assert_array_equal(pixels, picture_of(source))
        else:
            with pytest.raises(ValueError, match="convert it to RGB"):
                pipeline_gmdf.picture_of(source)
    for wrong in (3, np.zeros((3, 3), np.float32), np.zeros((3, 3, 4), np.uint8)):
        with pytest.raises(ValueError, match="Expected a path, a PIL image or an RGB array of type uint8, found"):
            pipeline_gmdf.picture_of(wrong)


# Modules that every checkpoint needs; users must trust this code, so it excludes the making of new detectors, checks of
# untrusted files, downloads, face detection and heatmaps.
CODE = {"configuration", "modeling", "vision", "text", "experts", "mim", "outputs", "loading"}
CODE |= {"image_processing", "pipeline"}


def code_of(folder: Path) -> dict[str, int]:
    """Lines of each module in a saved folder."""
    return {file.stem.removesuffix("_gmdf"): len(file.read_text().splitlines()) for file in folder.glob("*.py")}


def test_little_code_travels_with_a_checkpoint(folder):
    lines = code_of(folder)
    assert lines.keys() == CODE
    assert len(lines) <= 12
    assert sum(lines.values()) <= 1500


def test_code_of_other_backbones_travels_only_with_their_checkpoints(tmp_path):
    """Another backbone needs its own model class, the hooks that add experts to it, and the places for them."""
    model = GMDFModel(GMDFConfig(vision_config={"model_type": "dinov2", **DINOV2}, domains=["a", "b"]))
    save_model(tmp_path / "model", model, GMDFImageProcessor.of_size(32), slim=True)
    lines = code_of(tmp_path / "model")
    assert lines.keys() == CODE | {"backbone_model", "backbones", "sites"}
    assert sum(lines.values()) <= 2000
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "backbone_model_gmdf.GMDFBackboneModel"


def test_a_score_that_is_not_finite_is_an_error(folder):
    broken = pipeline("deepfake-detection", model=str(folder), trust_remote_code=False, detector="none")
    with torch.no_grad():
        broken.model.logit_scale.fill_(float("nan"))
    for source, number in ((picture(), 1), (np.zeros((3, 40, 40, 3), np.uint8), 3)):
        result = broken(source, on_error="return")
        assert result["label"] is None and result["score"] is None and result["frames_read"] == number
        assert "the model gave a score that is not a finite number" in result["error"]
        with pytest.raises(BrokenModelError, match="not a finite number"):
            broken(source)


def test_a_saved_pipeline_is_the_pipeline(detect, tmp_path):
    detect.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["custom_pipelines"]["deepfake-detection"]["impl"] == "pipeline_gmdf.DeepfakeDetectionPipeline"
    again = pipeline("deepfake-detection", model=str(tmp_path / "saved"), trust_remote_code=False, detector="none")
    assert again(picture())["score"] == detect(picture())["score"]


def test_missing_detector_weights_say_what_to_do(folder, tmp_path):
    code = (
        "import sys\nfrom gmdf_hf import DeepfakeDetectionPipeline\nfrom transformers import pipeline\n"
        "detect = pipeline('deepfake-detection', model=sys.argv[1], trust_remote_code=False)\n"
        "detect(sys.argv[2])"
    )
    picture().save(tmp_path / "face.png")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    result = processes.run("-c", code, folder, tmp_path / "face.png", env=environment, warm=processes.LIBRARIES)
    assert "DetectorError: Detector weights opencv/face_detection_yunet" in result.stderr
    assert "pass it with" in result.stderr


def test_real_videos_each_give_a_result(folder, real_data):
    detect = pipeline(
        "deepfake-detection", model=str(folder), trust_remote_code=False, detector_weights=str(WEIGHTS), num_frames=8
    )
    videos = sorted((real_data / "videos").rglob("*.mp4"))
    for video, result in zip(videos, detect([str(video) for video in videos]), strict=True):
        assert result["face_found"] is (video.name != "no_face.mp4"), video
        assert (result["label"] is None) is (video.name == "no_face.mp4")
        frames = [face["frame"] for face in result["faces"] if face["person"] == 0]
        assert frames == sorted(set(frames))
        if video.name == "several_faces.mp4":
            assert len(result["persons"]) > 1
        assert result["score"] == max((person["score"] for person in result["persons"]), default=None)


def test_odd_files_give_a_result_or_one_line(folder, real_data):
    detect = pipeline("deepfake-detection", model=str(folder), trust_remote_code=False, detector_weights=str(WEIGHTS))
    files = sorted((real_data / "odd").iterdir())
    results = detect([str(file) for file in files], on_error="return")
    by_name = {file.name: result for file, result in zip(files, results, strict=True)}
    upright, turned = by_name["pillow__hopper_orientation_2.jpg"], by_name["pillow__hopper_orientation_3.jpg"]
    assert upright["face_found"] and turned["face_found"]
    np.testing.assert_allclose(upright["faces"][0]["box"], turned["faces"][0]["box"], atol=2)
    for name, result in by_name.items():
        assert result["error"] is None or (name in result["error"] and "\n" not in result["error"]), name
