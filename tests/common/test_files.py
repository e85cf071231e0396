"""Stamps that tell replaced files from those that were read before."""

import os

from gmdf_hf.common.files import file_stamp, local_stamp


def test_a_replaced_file_has_another_stamp(tmp_path):
    path = tmp_path / "folder" / "a.png"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    before, folder = file_stamp(path), local_stamp(str(path.parent))
    assert local_stamp(str(path.parent)) == folder
    path.write_bytes(b"abd")
    os.utime(path, ns=(1, 1))
    assert file_stamp(path) != before and local_stamp(str(path.parent)) != folder
    assert file_stamp(tmp_path / "none") == "missing" and local_stamp("user/name") is None
