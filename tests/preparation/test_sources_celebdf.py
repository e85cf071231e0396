import pytest

from gmdf_hf.common.errors import SourceError
from gmdf_hf.preparation.sources.celebdf import group_of, list_records
from gmdf_hf.preparation.sources.record import check_leaks
from tests.media import counts, fill, numbered, write_video

REAL = [f"id{n // 10}_{n % 10:04}" for n in range(590)]
YOUTUBE = [f"{n:05}" for n in range(300)]
FAKE = [f"id{n // 10}_id{(n // 10 + k) % 59}_{n % 10:04}" for k in range(1, 11) for n in range(590)][:5639]
# The last clips of the lists are tested, with one fake of each of the last 340 fakes.
TEST = [*(("1 Celeb-real", name) for name in REAL[-108:]), *(("1 YouTube-real", name) for name in YOUTUBE[-70:])]
TEST += [("0 Celeb-synthesis", name) for name in [f for f in FAKE if group_of("", f) in REAL[-108:]][:340]]


def build(root, video, level="", youtube="YouTube-real"):
    for folder, names in (("Celeb-real", REAL), (youtube, YOUTUBE), ("Celeb-synthesis", FAKE)):
        fill(root / folder / level, [f"{name}.mp4" for name in names], video)
    lines = [f"{flag}/{name}.mp4".replace("YouTube-real", youtube) for flag, name in TEST]
    (root / "List_of_testing_videos.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "short.mp4", numbered(2))


@pytest.mark.parametrize(("level", "youtube"), [("", "YouTube-real"), ("videos", "Youtube-real")])
def test_official_tree(tmp_path, video, level, youtube):
    listing = list_records(build(tmp_path / "celeb", video, level, youtube))
    check_leaks(listing.records)
    found = counts(listing)
    assert found["test", "real"] == 178 and found["test", "Celeb-DF"] == 340
    tested = {f"{flag[2:]}/{name}" for flag, name in TEST}
    assert {record.video_id for record in listing.records if record.split == "test"} == tested
    assert not any(record.video_id in tested for record in listing.records if record.split != "test")
    # All 6,529 are used or named.
    assert len(listing.records) + len(listing.left_out) == 6529
    shared = sum(group_of("", name) in REAL[-108:] for name in FAKE) - 340
    assert listing.notes == [f"{shared} train videos dropped: same group in test or validation."]
    assert 0.05 < found["validation", "real"] / (890 - 178) < 0.15
    assert {(r.video_id.split("/")[0], r.label) for r in listing.records} == {
        ("Celeb-real", 0),
        ("YouTube-real", 0),
        ("Celeb-synthesis", 1),
    }


def test_leak_unit_is_the_clip_of_the_target():
    assert group_of("Celeb-synthesis", "id3_id27_0005") == group_of("Celeb-real", "id3_0005") == "id3_0005"
    assert group_of("YouTube-real", "00005") == "youtube_00005"


def test_the_list_of_test_videos_is_checked(tmp_path, video):
    root = build(tmp_path / "celeb", video)
    file = root / "List_of_testing_videos.txt"
    good = file.read_text()
    for line, message in (
        ("0 Celeb-real/id0_0000.mp4", "flag 0 contradicts folder Celeb-real"),
        ("1 Celeb-synthesis/id0_id1_0000.mp4", "1 is real in this list"),
        ("1 Celeb-real/../x.mp4", "expected e.g."),
    ):
        file.write_text(f"{line}\n{good}")
        with pytest.raises(SourceError, match=message):
            list_records(root)
    file.write_text(good + "1 YouTube-real/99999.mp4\n")
    listing = list_records(root)
    assert ("YouTube-real/99999", "listed but not on disk") in listing.left_out
    assert any("71 found, 70 in the official" in note for note in listing.notes)
    file.unlink()
    with pytest.raises(SourceError, match="would be trained on"):
        list_records(root)


def test_missing_videos_are_counted(tmp_path, video):
    root = build(tmp_path / "celeb", video)
    (root / "YouTube-real/00000.mp4").unlink()
    assert "Celeb-DF YouTube-real: 299 found, 300 in the official release." in list_records(root).notes
