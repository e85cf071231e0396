import json

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from gmdf_hf.preparation.crops import CropSettings
from gmdf_hf.preparation.deepfakebench_export import export_deepfakebench
from gmdf_hf.preparation.prepare import prepare
from gmdf_hf.preparation.sources import deepfakebench, folder
from tests.domains import build_folder


def test_domain_goes_to_deepfakebench_and_back(tmp_path):
    data = build_folder(tmp_path / "mine", videos=2, images=0)
    prepare(folder.list_records(data), tmp_path / "domain", "mine", CropSettings(frames=3, size=32), "none")
    index = export_deepfakebench(tmp_path / "domain", tmp_path / "bench", "Mine")
    content = json.loads(index.read_text())["Mine"]
    assert set(content) == {"DF_real", "fake_Fake"} and set(content["DF_real"]) == {"train", "val", "test"}
    assert content["fake_Fake"]["val"]["validation_fake_v1"]["frames"] == [
        f"Mine/fake_Fake/frames/validation/fake/v1/{frame:03}.png" for frame in (0, 6, 11)
    ]
    listing = deepfakebench.list_records(index, tmp_path / "bench")
    assert (
        len(listing.records) == 12
        and not listing.left_out
        and listing.notes == ["label: DF_real -> 0 (real), fake_Fake -> 1 (fake)."]
    )
    local = load_dataset(str(tmp_path / "domain"), split="test")
    first = next(record for record in listing.records if record.split == "test" and record.label == 0)
    np.testing.assert_array_equal(np.asarray(Image.open(first.path / first.members[0])), np.asarray(local[0]["image"]))


def test_no_domain_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no prepared domain"):
        export_deepfakebench(tmp_path, tmp_path / "bench", "X")
