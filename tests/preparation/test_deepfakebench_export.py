import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from gmdf_hf.common.columns import FEATURES
from gmdf_hf.data.dataset import load_domain
from gmdf_hf.preparation.crops import CropSettings
from gmdf_hf.preparation.deepfakebench_export import export_deepfakebench
from gmdf_hf.preparation.prepare import prepare
from gmdf_hf.preparation.sources import deepfakebench, faceforensics, folder
from tests.domains import build_folder, build_masked


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


def test_a_missing_domain_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no prepared domain"):
        export_deepfakebench(tmp_path, tmp_path / "bench", "X")


def test_masks_go_there_and_back(tmp_path):
    listing = faceforensics.list_records(build_masked(tmp_path / "dfd", videos=12, frames=8), ["DeepFakeDetection"])
    settings = CropSettings(frames=3, size=32, format="png")
    summary = prepare(listing, tmp_path / "domain", "faceforensics", settings, "none")
    assert summary["masks"] and summary["doubtful_videos"] == 0
    rows = {split: list(table) for split, table in load_dataset(str(tmp_path / "domain")).items()}
    for row in (row for split in rows.values() for row in split):
        assert row["seconds"] == pytest.approx(row["frame"] / 25)
        if row["label"] == 1:
            mask = np.asarray(row["mask"])
            assert mask.shape == (32, 32) and mask[16, 16] == 255 and mask[2, 2] == 0
        else:
            assert row["mask"] is None
    index = export_deepfakebench(tmp_path / "domain", tmp_path / "bench", "DFD")
    back = deepfakebench.list_records(index, tmp_path / "bench")
    fakes = [record for record in back.records if record.label == 1]
    assert fakes and all(len(record.mask_members) == 3 and all(record.mask_members) for record in fakes)
    assert not any(record.has_mask for record in back.records if record.label == 0)
    again = prepare(back, tmp_path / "again", "deepfakebench", settings, "none")
    assert again["masks"]
    masks = [row["mask"] for table in load_dataset(str(tmp_path / "again")).values() for row in table if row["label"]]
    assert all(np.asarray(mask)[16, 16] == 255 and np.asarray(mask)[2, 2] == 0 for mask in masks)


def test_domains_of_earlier_versions_load(tmp_path):
    """Without `seconds` and `mask`, and with both."""
    listing = faceforensics.list_records(build_masked(tmp_path / "dfd", videos=12, frames=8), ["DeepFakeDetection"])
    prepare(listing, tmp_path / "new", "faceforensics", CropSettings(frames=3, size=32), "none")
    (tmp_path / "old").mkdir()
    for file in (tmp_path / "new/data").glob("train-*"):
        table = pq.read_table(file).select(FEATURES).cast(FEATURES.arrow_schema)
        pq.write_table(table, tmp_path / "old" / "train.parquet")
    old = load_domain("d", "train", str(tmp_path / "old"))
    new = load_domain("d", "train", str(tmp_path / "new"))
    assert old.video_ids == new.video_ids and (old.labels == new.labels).all() and len(old) == len(new) > 0
