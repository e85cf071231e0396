import resource
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmdf_hf.preparation.video import VideoError, even_indices, frame_times, read_frames
from tests.media import number_of, numbered, write_video


@given(st.integers(1, 5000), st.integers(1, 400))
def test_indices_reach_from_first_to_last(total, count):
    indices = even_indices(total, count)
    assert len(indices) == min(total, count) and indices == sorted(set(indices))
    assert indices[0] == 0 and (count == 1 or indices[-1] == total - 1)
    gaps = np.diff(indices)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("closed.mp4", "libx264", {"bf": "0", "g": "10"}),
        ("pyramid.mp4", "libx264", {"bf": "4", "g": "30", "x264-params": "b-pyramid=normal:open-gop=1"}),
        ("a.mkv", "libx264", {}),
        ("a.avi", "mpeg4", {}),
        ("a.webm", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    ],
)
def test_frames_are_the_ones_asked_for(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, numbered(97), codec=codec, options=options)
    assert len(frame_times(path)) == 97
    read = list(read_frames(path, 9))
    numbers = [frame.number for frame in read]
    assert numbers == [0, 12, 24, 36, 48, 60, 72, 84, 96]
    np.testing.assert_allclose([number_of(frame.pixels) for frame in read], numbers, atol=1)
    np.testing.assert_allclose([frame.seconds for frame in read], np.array(numbers) / 25, atol=1e-3)
    assert read[0].pixels.shape == (64, 96, 3)


def test_skipping_unwanted_frames_changes_no_pixel(tmp_path):
    rng = np.random.default_rng(0)
    moving = (np.roll(rng.integers(0, 255, (64, 96, 3), np.uint8), 3 * n, axis=1) for n in range(60))
    path = write_video(tmp_path / "a.mp4", moving, options={"bf": "3"})
    every = {frame.number: frame.pixels for frame in read_frames(path, 60)}
    assert len(every) == 60
    for frame in read_frames(path, 7):
        np.testing.assert_array_equal(frame.pixels, every[frame.number])


def test_short_video_gives_all_it_has(tmp_path):
    assert [frame.number for frame in read_frames(write_video(tmp_path / "a.mp4", numbered(3)), 32)] == [0, 1, 2]
    assert [frame.number for frame in read_frames(write_video(tmp_path / "b.mp4", numbered(1)), 32)] == [0]


@pytest.mark.parametrize(("degrees", "a", "b", "c", "d"), [(90, 0, 1, -1, 0), (180, -1, 0, 0, -1), (270, 0, -1, 1, 0)])
def test_rotation_metadata_is_applied(tmp_path, degrees, a, b, c, d):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :32] = 255  # a bright top left corner
    path = write_video(tmp_path / "a.mp4", [pixels] * 3)
    content = path.read_bytes()
    start = content.index(b"tkhd") + 4 + 40  # the 3x3 matrix of the track header, 16.16 fixed point
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:start] + matrix + content[start + 36 :])
    upright = next(read_frames(path, 1)).pixels
    expected = np.rot90(pixels, -degrees // 90)  # shown turned clockwise
    assert upright.shape == expected.shape
    assert np.abs(upright.astype(int) - expected).mean() < 12


def test_broken_videos_name_file_and_reason(tmp_path):
    whole = write_video(
        tmp_path / "whole.mp4", numbered(60), options={"movflags": "+faststart", "crf": "1"}
    ).read_bytes()
    cases = {
        "absent.mp4": (None, "no such file"),
        "empty.mp4": (b"", "an empty file, expected a video"),
        "text.mp4": (b"hello world" * 100, "not a readable video"),
        "no_index.mp4": (whole[: whole.index(b"moov")], "not a readable video"),
        "playlist.mp4": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "not a readable video"),
        "concat.mp4": (b"ffconcat version 1.0\nfile whole.mp4\n", "not a readable video"),
    }
    for name, (content, reason) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=f"{name}: {reason}"):
            list(read_frames(tmp_path / name, 4))
    with pytest.raises(VideoError, match="a folder, expected a file"):
        list(read_frames(tmp_path, 4))


def test_title_in_an_old_encoding_is_no_obstacle(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(3))
    path.write_bytes(path.read_bytes().replace(b"Lavf6", b"\xfc\xff\xfe\xe9\x80"))
    assert len(list(read_frames(path, 3))) == 3


def test_video_cut_short_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 255, (64, 96, 3), np.uint8) for _ in range(60))
    path = write_video(tmp_path / "a.mp4", noise, muxer={"movflags": "faststart"})
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(VideoError, match=r"a\.mp4: cut short, \d+ whole frames found of 60"):
        list(read_frames(path, 4))


def test_damaged_stream_is_refused_or_read_but_never_hangs(tmp_path):
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 255, (64, 96, 3), np.uint8) for _ in range(30))
    path = write_video(tmp_path / "a.mp4", noise)
    content = bytearray(path.read_bytes())
    for position in rng.integers(content.index(b"mdat") + 8, len(content) * 3 // 4, 300):
        content[position] = rng.integers(256)
    path.write_bytes(content)
    try:
        assert len(list(read_frames(path, 4))) == 4
    except VideoError as error:
        message = str(error)
        assert "a.mp4" in message


def test_too_many_pixels_or_frames(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", numbered(20))
    monkeypatch.setattr("gmdf_hf.preparation.video.MAX_PIXELS", 64 * 96 - 1)
    with pytest.raises(VideoError, match="frames of 96x64 pixels"):
        list(read_frames(path, 4))
    monkeypatch.undo()
    monkeypatch.setattr("gmdf_hf.preparation.video.MAX_FRAMES", 19)
    with pytest.raises(VideoError, match="more than 19 frames"):
        list(read_frames(path, 4))


def test_memory_does_not_grow_with_the_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", (np.zeros((720, 1280, 3), np.uint8) for _ in range(100)))
    for _ in read_frames(path, 5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in read_frames(path, 100):
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # 100 frames are 270,000 KiB


def test_unknown_codec_is_refused(tmp_path):
    path = write_video(tmp_path / "video.mkv", numbered(3))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ"))
    with pytest.raises(VideoError, match=r"video\.mkv: no video stream"):
        list(read_frames(path, 2))


def test_time_is_bounded(tmp_path):
    path = write_video(tmp_path / "video.mp4", numbered(20))
    assert len(list(read_frames(path, 2, max_seconds=60))) == 2
    with pytest.raises(VideoError, match=r"video\.mp4: not read within 0 seconds, 20 frames"):
        list(read_frames(path, 2, max_seconds=0))
