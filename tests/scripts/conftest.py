import numpy as np
import pytest
from PIL import Image

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.common.files import write_json
from gmdf_hf.training.checkpoint import save_model
from tests.conftest import tiny_model
from tests.evaluation.test_report import RESULTS
from tests.media import numbered, write_video


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "model", tiny_model(threshold=0.25), GMDFImageProcessor.of_size(32), slim=True)
    write_json(folder / "results.json", RESULTS)
    return str(folder / "model")


@pytest.fixture
def folder(tmp_path):
    """Two pictures, a video, a broken picture, a broken video and a hidden file."""
    root = tmp_path / "files"
    (root / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "deep/b c,d.png"):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(root / name)
    write_video(root / "deep" / "e.mp4", numbered(3))
    (root / "f.png").write_bytes(b"not a picture")
    (root / "g.mp4").write_bytes(b"not a video")
    (root / ".hidden.png").write_bytes(b"not looked at")
    return root
