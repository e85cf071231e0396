"""What a stop can leave, and what whoever continues must find."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmdf_hf.common.resume import Difference, begin, differences, unit_file, unit_files, write_unit, write_whole


def test_settings_are_written_first_and_compared_by_the_next(tmp_path):
    path = tmp_path / "work" / "settings.json"
    settings = {"frames": 8, "name": "a", "shard": (1, 2)}
    assert begin(path, settings) == [] and begin(path, settings) == []
    assert begin(path, settings | {"frames": 9}) == [Difference("frames", 8, 9)]
    assert begin(path, settings | {"new": 1}) == [Difference("new", None, 1)]
    assert begin(path, settings | {"new": 1}, unknown=["new"]) == []  # an earlier version did not write it down
    assert differences({"a": 1}, {"a": 1, "b": None}) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def stop(path):
        path.write_text("half")
        raise KeyboardInterrupt

    (tmp_path / "x.json").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x.json", stop)
    assert (tmp_path / "x.json").read_text() == "old"
    write_whole(tmp_path / "x.json", lambda path: path.write_text("new"))
    assert (tmp_path / "x.json").read_text() == "new"


def test_units_are_read_in_their_order_and_half_written_ones_are_not_read(tmp_path):
    for first, last in ((10, None), (2, None), (300, 315)):
        write_unit(unit_file(tmp_path, first, last), pa.table({"row": [first]}))
    (tmp_path / ".00000003.parquet.17.tmp").write_bytes(b"half")
    assert [pq.read_table(path)["row"][0].as_py() for path in unit_files(tmp_path)] == [2, 10, 300]
