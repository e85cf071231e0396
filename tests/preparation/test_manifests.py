import hashlib

import pandas as pd

from gmdf_hf.preparation.manifests import manifest_digest


def test_files_are_known_by_name_and_size(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.png").write_bytes(b"abc")
    (tmp_path / "0.png").write_bytes(b"")
    first = manifest_digest(tmp_path)
    assert first == hashlib.sha256(b"0.png 0\nreal/1.png 3\n").hexdigest()
    (tmp_path / "real" / "1.png").write_bytes(b"abcd")
    assert manifest_digest(tmp_path) != first


def test_parquet_is_known_by_its_footer(tmp_path):
    pd.DataFrame({"label": [0, 1]}).to_parquet(tmp_path / "train.parquet")
    first = manifest_digest(tmp_path)
    (tmp_path / "README.md").write_text("another card")
    assert manifest_digest(tmp_path) == first
    pd.DataFrame({"label": [1, 1]}).to_parquet(tmp_path / "train.parquet")
    assert manifest_digest(tmp_path) != first
    (tmp_path / "train.parquet").write_bytes(b"broken")
    assert manifest_digest(tmp_path) is None


def test_what_is_not_here_has_no_manifest(tmp_path):
    assert manifest_digest("user/faces") is None
    assert manifest_digest(tmp_path) is None
