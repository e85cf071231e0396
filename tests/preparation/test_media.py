"""Files of every container against what ffprobe and ffmpeg wrote of them, and files with a wrong name."""

import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from gmdf_hf.common.images import FORMATS, ImageError, open_image
from gmdf_hf.preparation.media import kind_of, open_media
from gmdf_hf.preparation.video import VideoError, read_frames
from tests.media import numbered, write_video

MEDIA = Path(__file__).parents[1] / "media"
TRUTH = json.loads((MEDIA / "truth.json").read_text())


def quarters(pixels):
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    parts = (pixels[:height, :width], pixels[:height, width:], pixels[height:, :width], pixels[height:, width:])
    return [part.reshape(-1, 3).mean(0) for part in parts]


# Where pixels are resized or have ten bits, FFmpeg interpolates the colours at edges with another filter.
COLOUR_TOLERANCE = {"sar_4_3.mp4": 3.0, "ten_bits.mp4": 4.0}


@pytest.mark.parametrize("name", TRUTH)
def test_size_times_and_colours_are_those_of_ffmpeg(name):
    truth = TRUTH[name]
    frames = list(open_media(MEDIA / name, 100).read(None))
    assert frames[0].pixels.shape == (truth["height"], truth["width"], 3)
    assert [frame.number for frame in frames] == list(range(len(truth["seconds"])))
    np.testing.assert_allclose([frame.seconds for frame in frames], truth["seconds"], atol=2e-3)
    tolerance = COLOUR_TOLERANCE.get(name, 0.5)
    np.testing.assert_allclose(quarters(frames[0].pixels), truth["first"], atol=tolerance)
    np.testing.assert_allclose(quarters(frames[-1].pixels), truth["last"], atol=tolerance)


@pytest.mark.parametrize("name", TRUTH)
def test_the_same_frames_come_whatever_their_number_and_whatever_the_file_is_called(name, tmp_path):
    every = list(open_media(MEDIA / name, 100).read(None))
    other = tmp_path / "a.mp4" if name.endswith((".gif", ".png")) else tmp_path / "a.jpg"
    shutil.copy(MEDIA / name, other)
    for count in (1, 2, 5):
        for frame in open_media(other, count).read(None):
            np.testing.assert_array_equal(frame.pixels, every[frame.number].pixels)
    (frame,) = open_media(other, 1).read([len(every) - 1])
    np.testing.assert_array_equal(frame.pixels, every[-1].pixels)


def test_red_is_decoded_as_red_with_either_colour_matrix():
    for name in ("tagged_bt601.mp4", "tagged_bt709.mp4", "hd_untagged.mp4"):
        np.testing.assert_allclose(next(read_frames(MEDIA / name, 1)).pixels[32, 32], (200, 30, 30), atol=4)


def test_animations_have_frames_and_times(tmp_path):
    frames = [Image.fromarray(np.random.default_rng(n).integers(0, 255, (64, 96, 3), np.uint8)) for n in range(6)]
    for name, options in (("a.gif", {"duration": 200}), ("a.webp", {"duration": 200}), ("a.png", {"duration": 200})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        read = list(open_media(tmp_path / name, 3).read(None))
        assert [frame.number for frame in read] == [0, 2, 5]
        assert [frame.seconds for frame in read] == pytest.approx([0, 0.4, 1.0])
    frames[0].save(tmp_path / "still.gif")
    assert [frame.number for frame in open_media(tmp_path / "still.gif", 3).read(None)] == [0]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])  # pages are no animation
    assert len(list(open_media(tmp_path / "pages.tif", 3).read(None))) == 1


def test_an_animation_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    frames = [Image.fromarray(pixels) for pixels in numbered(6)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr("gmdf_hf.preparation.media.MAX_ANIMATION_PIXELS", 5 * 64 * 96)
    with pytest.raises(ImageError, match=r"an animation of 6 frames of 96x64 pixels, expected at most"):
        list(open_media(tmp_path / "a.gif", 3).read(None))


def test_content_tells_the_kind(tmp_path):
    assert {kind_of(MEDIA / name) for name in TRUTH if not name.endswith((".gif", ".png", ".webp"))} == {"video"}
    for content in (b"", b"hello", b"G" * 2000, b"\0" * 2000):
        (tmp_path / "x").write_bytes(content)
        assert kind_of(tmp_path / "x") == ("video" if content[:1] == b"G" else None)
    assert kind_of(tmp_path / "absent") is None
    (tmp_path / "cut.m2t").write_bytes((MEDIA / "transport.m2t").read_bytes()[100:])  # joined within a packet
    assert kind_of(tmp_path / "cut.m2t") == "video"
    (tmp_path / "text.mp4").write_bytes(b"hello" * 100)
    with pytest.raises(VideoError, match="not a readable video"):
        list(open_media(tmp_path / "text.mp4", 3, name="n").read(None))
    (tmp_path / "text.mp4").rename(tmp_path / "text.xyz")
    with pytest.raises(ImageError, match=r"not a readable image of .* Nor is it a video"):
        list(open_media(tmp_path / "text.xyz", 3).read(None))
    for name in ("empty.png", "empty.mp4", "empty"):
        (tmp_path / name).touch()
        with pytest.raises((ImageError, VideoError), match=f"{name}: an empty file"):
            list(open_media(tmp_path / name, 3).read(None))


@pytest.mark.parametrize("count", [1, 2, 5, 7, 12])
@pytest.mark.parametrize("name", ["b_frames.avi", "b_frames.asf", "raw.h264"])
def test_containers_without_display_times_give_the_frames_that_were_asked_for(name, count):
    every = [frame.pixels for frame in open_media(MEDIA / name, 12).read(None)]
    media = open_media(MEDIA / name, count)
    frames = list(media.read(None))
    assert len(frames) == count and media.report.lost == []
    for frame in frames:
        np.testing.assert_array_equal(frame.pixels, every[frame.number])


def test_a_cut_file_is_read_as_far_as_it_goes_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 255, (64, 96, 3), np.uint8) for _ in range(60))
    path = write_video(tmp_path / "a.mp4", noise, options={"g": "5"}, muxer={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(VideoError, match=r"a\.mp4: cut short, \d+ whole frames found of 60"):
        list(open_media(path, 8).read(None))
    media = open_media(path, 8, allow_cut=True)
    assert len(list(media.read(None))) == 8
    assert "cut short" in media.report.notes[0] and "of 60" in media.report.notes[0]


@pytest.mark.parametrize("place", [0.02, 0.5, 0.9])
def test_a_damaged_video_gives_one_answer_whatever_the_number_of_frames(tmp_path, place):
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 255, (64, 96, 3), np.uint8) for _ in range(60))
    path = write_video(tmp_path / "a.mp4", noise, options={"g": "10", "bf": "2", "sc_threshold": "0"})
    every = {frame.number: frame.pixels for frame in read_frames(path, 60)}
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov")
    at = int(start + place * (end - start))
    content[at : at + 3000] = bytes(3000)
    path.write_bytes(content)
    for count in (1, 3, 8, 32, 60):
        frames = list(read_frames(path, count))
        assert 1 <= len(frames) <= count
        for frame in frames:  # what comes before the damage is what it was
            if frame.number < int(60 * place) - 2:
                np.testing.assert_array_equal(frame.pixels, every[frame.number])


def test_a_recording_joined_in_the_middle(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (64, 96, 3), np.uint8) for _ in range(40)]
    path = write_video(tmp_path / "a.ts", noise, options={"g": "20", "bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    second_key = [packet.pos for packet in packets if packet.is_keyframe][1]
    content = path.read_bytes()
    for start, found in ((second_key // 2 // 188 * 188 + 188, True), (second_key + 4 * 188, False)):
        path.write_bytes(content[start:])
        if found:  # the frames from the next key frame on
            assert 1 <= len(list(read_frames(path, 8))) <= 8
        else:
            with pytest.raises(VideoError, match="the recording was joined in the middle, or is damaged"):
                list(read_frames(path, 8))


def test_hdr_is_tone_mapped(tmp_path):
    """Paper white of HLG (75 %) and PQ (58 %) is nearly white; a grey of a tenth of its light stays a grey."""
    from gmdf_hf.preparation.colors import HLG, PQ, _tone_map

    for transfer, white, grey in ((HLG, 0.75, 0.3586), (PQ, 0.58, 0.3636)):
        values = np.array([[[white] * 3, [grey] * 3, [0.0] * 3, [1.0] * 3]])
        toned = _tone_map((values * 65535).astype(np.uint16), transfer)[0, :, 0]
        assert 225 <= toned[0] <= 250 and toned[2] == 0 and toned[3] == 255
        assert abs(toned[1] - 255 * 0.1 ** (1 / 2.2)) < 25


def test_heic_is_read_or_the_missing_package_is_named(real_data):
    path = real_data / "odd/pillow__hopper.heif"
    if "HEIF" in FORMATS:
        assert open_image(path).mode == "RGB"
    else:
        with pytest.raises(ImageError, match="HEIC pictures need the package pillow-heif: pip install pillow-heif"):
            open_image(path)


def test_a_picture_of_bytes_is_what_it_was(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (9, 9, 9)).save(buffer, "PNG")
    (tmp_path / "x.mp4").write_bytes(buffer.getvalue())
    (frame,) = open_media(tmp_path / "x.mp4", 3).read(None)
    assert (frame.number, frame.seconds, frame.pixels.shape) == (0, 0.0, (6, 8, 3))
