"""Untrusted files are read in a child process, which may hang, crash or run out of memory."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmdf_hf.common.images import ImageError
from gmdf_hf.preparation.media import open_media
from gmdf_hf.preparation.video import VideoError
from gmdf_hf.serving import isolated
from gmdf_hf.serving.isolated import IsolatedReader
from tests.media import numbered, write_video


@pytest.fixture(scope="module")
def reader():
    reader = IsolatedReader(30.0)
    yield reader
    reader.close()


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "face.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    return path


def frames(media, numbers=None):
    return [(frame.number, frame.seconds, frame.pixels.tolist()) for frame in media.read(numbers)]


def test_frames_are_those_of_this_process(reader, picture, tmp_path):
    video = write_video(tmp_path / "video.mp4", numbered(9))
    for path in (picture, video):
        assert frames(reader.open(path, 4)) == frames(open_media(path, 4))
    media, here = reader.open(video, 4), open_media(video, 4)
    assert frames(media) == frames(here) and frames(media, [2, 3]) == frames(here, [2, 3])  # read again


def test_errors_are_those_of_this_process(reader, picture, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"shown\.png: damaged"):
        frames(reader.open(broken, 4, name="shown.png"))
    with pytest.raises(ImageError, match="no such file"):
        frames(reader.open(tmp_path / "none.png", 4))
    (tmp_path / "none.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    with pytest.raises(VideoError):
        frames(reader.open(tmp_path / "none.mp4", 4))
    assert len(frames(reader.open(picture, 4))) == 1


def test_a_reader_left_in_the_middle_starts_anew(reader, picture, tmp_path):
    video = write_video(tmp_path / "video.mp4", numbered(9))
    for frame in reader.open(video, 9).read(None):
        assert frame.number == 0
        break
    assert frames(reader.open(picture, 4)) == frames(open_media(picture, 4))


def stop_child(reader, picture, *signals):
    """Read a picture, then stop the child to simulate a decoder that hangs; return its process id."""
    frames(reader.open(picture, 4))
    process = child_of(reader)
    for number in signals:
        os.kill(process, number)
    return process


def child_of(reader) -> int:
    (process,) = [child._process.pid for child in reader._children if child._process is not None]
    return process


def test_a_late_file_is_an_error_and_the_next_one_is_read(picture):
    reader = IsolatedReader(30.0)
    stop_child(reader, picture, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"face\.png: not read within 1 seconds"):
        frames(reader.open(picture, 4, max_seconds=1.0))
    assert time.monotonic() - started < 10
    assert len(frames(reader.open(picture, 4))) == 1
    reader.close()


def test_a_crash_is_an_error_and_the_next_file_is_read(picture):
    reader = IsolatedReader(30.0)
    process = stop_child(reader, picture, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (process, signal.SIGKILL)).start()
    with pytest.raises(ImageError, match=r"face\.png: the decoder needed more than 4096 MB of memory or crashed"):
        frames(reader.open(picture, 4))
    assert len(frames(reader.open(picture, 4))) == 1
    reader.close()


def test_memory_is_limited(tmp_path, picture):
    Image.new("RGB", (7000, 7000)).save(tmp_path / "large.png")
    reader = IsolatedReader(60.0, max_memory=600 * 2**20)
    with pytest.raises(
        ImageError, match=r"large\.png: (damaged or unsupported image \(MemoryError|the decoder needed)"
    ):
        frames(reader.open(tmp_path / "large.png", 1))
    assert len(frames(reader.open(picture, 4))) == 1
    reader.close()


def test_the_child_knows_no_secrets(reader, picture, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    reader.close()
    frames(reader.open(picture, 4))
    environment = Path(f"/proc/{child_of(reader)}/environ")
    if not environment.exists():
        pytest.skip("the environment of a process is read from /proc")
    assert b"secret" not in environment.read_bytes()


def test_five_hundred_scans_keep_nobody_waiting(real_data, picture):
    scans = real_data / "cases" / "hostile" / "jpgscans500.jpg"
    reader = IsolatedReader(2.0)
    with pytest.raises(ImageError, match=r"jpgscans500\.jpg: not read within 2 seconds"):
        frames(reader.open(scans, 4))
    assert len(frames(reader.open(picture, 4))) == 1
    reader.close()


def slow_file(folder, size) -> Path:
    """A valid picture whose decoding takes some seconds."""
    path = folder / f"slow{size}.png"
    Image.new("L", (8, 8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:33] + b"\0\0\0\0IDAT5\xaf\x06\x1e" * size + data[33:])  # empty chunks, one by one
    return path


def test_slow_files_wait_for_each_other_and_not_the_quick_ones_for_them(picture, tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "LOW_PRIORITY", 1)  # other programs may keep the machine busy
    reader, slow = IsolatedReader(60.0, quick_seconds=0.5), slow_file(tmp_path, 600_000)
    frames(reader.open(picture, 4))
    found, waited, began = [], [], time.monotonic()
    visitors = [threading.Thread(target=lambda: found.append(frames(reader.open(slow, 4)))) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    while any(visitor.is_alive() for visitor in visitors):
        started = time.monotonic()
        frames(reader.open(picture, 4))
        waited.append(time.monotonic() - started)
        time.sleep(0.1)
    assert len(found) == 3 and max(waited) < (time.monotonic() - began) / 2
    reader.close()


def test_a_file_read_ahead_is_read_once(picture, tmp_path):
    reader, video = IsolatedReader(30.0), write_video(tmp_path / "video.mp4", numbered(9))
    here = open_media(video, 4, allow_cut=True)
    expected, around = frames(here), frames(here, [3, 4])
    with reader.ahead(video, 4):
        hidden = video.rename(tmp_path / "away.mp4")
        media = reader.open(video, 4, allow_cut=True)
        assert frames(media) == expected and frames(media, [expected[1][0]]) == [expected[1]]
        hidden.rename(video)
        assert frames(media, [3, 4]) == around  # further frames
    with reader.ahead(tmp_path / "none.png", 4), pytest.raises(ImageError, match=r"none\.png: no such file"):
        frames(reader.open(tmp_path / "none.png", 4))
    video.unlink()
    with pytest.raises(VideoError, match="no such file"):
        frames(reader.open(video, 4))
    reader.close()


def test_frames_of_a_file_are_limited_in_all(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "MAX_FILE_BYTES", 40_000)
    reader, video = IsolatedReader(30.0), write_video(tmp_path / "video.mp4", numbered(9))
    with pytest.raises(ImageError, match=r"video\.mp4: frames of 96x64 pixels, expected at most 0 MB"):
        frames(reader.open(video, 9))
    assert len(frames(reader.open(video, 2))) == 2
    reader.close()
