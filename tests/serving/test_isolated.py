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
    """Read a picture, then stop the child to simulate a decoder that hangs."""
    frames(reader.open(picture, 4))
    assert reader._child is not None
    for number in signals:
        os.kill(reader._child.pid, number)


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
    stop_child(reader, picture, signal.SIGSTOP)
    assert reader._child is not None
    threading.Timer(0.5, os.kill, (reader._child.pid, signal.SIGKILL)).start()
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
    assert reader._child is not None
    environment = Path(f"/proc/{reader._child.pid}/environ")
    if not environment.exists():
        pytest.skip("the environment of a process is read from /proc")
    assert b"secret" not in environment.read_bytes()


def test_five_hundred_scans_keep_nobody_waiting(real_data, picture):
    reader = IsolatedReader(2.0)
    with pytest.raises(ImageError, match=r"jpgscans500\.jpg: not read within 2 seconds"):
        frames(reader.open(real_data / "cases" / "hostile" / "jpgscans500.jpg", 4))
    assert len(frames(reader.open(picture, 4))) == 1
    reader.close()
