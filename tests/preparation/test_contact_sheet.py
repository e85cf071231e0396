import pytest

from gmdf_hf.preparation.contact_sheet import COLORS, contact_sheet
from gmdf_hf.preparation.crops import CropSettings
from gmdf_hf.preparation.prepare import prepare
from gmdf_hf.preparation.sources import folder
from tests.domains import build_folder


def test_rows_are_videos_and_borders_say_the_class(tmp_path):
    data = build_folder(tmp_path / "mine", videos=2, images=0)
    prepare(folder.list_records(data), tmp_path / "out", "mine", CropSettings(frames=6, size=32), "none")
    sheet = contact_sheet(tmp_path / "out", videos=4, frames=3)
    assert sheet.size == (3 * 99 + 3, 4 * 113 + 3)
    colors = {sheet.getpixel((2, line * 113 + 3 + 60)) for line in range(4)}
    assert colors == set(COLORS.values())


def test_a_missing_domain_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no prepared domain"):
        contact_sheet(tmp_path)
