import io
import zipfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from gmdf_hf.preparation.crops import CropSettings, make_crops, perceptual_hash
from gmdf_hf.preparation.detectors import whole_picture
from gmdf_hf.preparation.faces import Face
from gmdf_hf.preparation.pictures import Lost, frame_numbers, read_archive, read_pictures, wanted_members
from gmdf_hf.preparation.sources.record import Record
from gmdf_hf.preparation.video import Frame
from tests.media import number_of, numbered, write_video


def record(path, members=()):
    return Record(path, 0, "real", "v", "g", "train", tuple(members))


def test_settings_name_value_and_range():
    for field, value in (("frames", 0), ("crop", "round"), ("size", 8), ("format", "webp")):
        with pytest.raises(ValueError, match=f"{field} is {value!r}, expected"):
            CropSettings(**{field: value})


def test_frame_numbers_come_from_names_if_they_are_numbers():
    assert frame_numbers(("a/005.png", "a/010.png")) == [5, 10]
    assert frame_numbers(("x/a.png", "x/b.png")) == [0, 1]
    assert frame_numbers(("x/1.png", "y/1.png")) == [0, 1]
    assert list(wanted_members(record(None, [f"{n}.png" for n in range(10)]), 3).values()) == [0, 4, 9]


def test_videos_folders_and_images_are_read_alike(tmp_path):
    video = write_video(tmp_path / "a.mp4", numbered(20))
    (tmp_path / "frames").mkdir()
    for n, pixels in enumerate(numbered(20)):
        Image.fromarray(pixels).save(tmp_path / "frames" / f"{n}.png")
    (tmp_path / "frames/7.png").write_bytes(b"broken")
    from_video = list(read_pictures(record(video), 20))
    from_frames = list(read_pictures(record(tmp_path / "frames", [f"{n}.png" for n in range(20)]), 20))
    for n in range(20):
        assert from_video[n].number == from_frames[n].number == n
        assert from_video[n].seconds == pytest.approx(n / 25)
        if n != 7:
            assert number_of(from_frames[n].pixels) == n and from_frames[n].seconds is None
    assert isinstance(from_frames[7], Lost) and "7.png" in from_frames[7].reason
    (frame,) = read_pictures(record(tmp_path / "frames/3.png"), 20)
    assert (frame.number, frame.seconds, number_of(frame.pixels)) == (0, 0.0, 3)


def test_archive_is_read_once_and_gives_whole_records(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for n, pixels in enumerate(numbered(12)):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            archive.writestr(f"{'ab'[n % 2]}/{n}.png", buffer.getvalue())
    records = [record(path, [f"{'ab'[k]}/{n}.png" for n in range(k, 12, 2)]) for k in (0, 1)]
    read = {
        r.members[0]: [(p.number, number_of(p.pixels)) for p in pictures] for r, pictures in read_archive(records, 3)
    }
    assert read == {"a/0.png": [(0, 0), (4, 4), (10, 10)], "b/1.png": [(1, 1), (5, 5), (11, 11)]}


def test_crop_is_the_followed_face_at_full_resolution():
    rng = np.random.default_rng(0)
    texture = np.asarray(Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((200, 200)))
    pictures = []
    for n in range(8):
        pixels = np.zeros((900, 1600, 3), np.uint8)
        pixels[300:500, 400 + 10 * n : 600 + 10 * n] = texture
        pictures.append(Frame(n, n / 25, pixels))

    def detector(pixels):
        rows, columns = np.nonzero(pixels.sum(axis=2) > 30)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        return [Face(tuple(map(float, box)), np.array(box, float)[[0, 1, 2, 1, 0, 3, 2, 3, 0, 1]].reshape(5, 2), 0.9)]

    crops = make_crops(lambda: [*pictures, Lost(8, "x.png: broken")], detector, CropSettings(size=260, format="png"))
    assert [row.frame for row in crops.rows] == list(range(8))
    assert crops.lost == [(8, "x.png: broken")]
    crop = np.asarray(Image.open(io.BytesIO(crops.rows[3].image)), int)
    assert crop.shape == (260, 260, 3)
    assert np.abs(crop[40:220, 40:220] - texture[10:190, 10:190]).mean() < 12  # up to the detector's own resolution


def test_frames_without_a_face_are_reported():
    frame = Frame(0, 0.0, np.zeros((50, 50, 3), np.uint8))
    assert make_crops(lambda: [frame], lambda _: [], CropSettings()).lost == [(0, "no face")]


def test_crops_of_the_data_set_are_kept_whatever_their_size():
    pictures = [Frame(n, None, np.full((50 + 40 * n, 60, 3), 99, np.uint8)) for n in range(4)]
    crops = make_crops(lambda: pictures, whole_picture, CropSettings(size=32))
    assert len(crops.rows) == 4
    assert Image.open(io.BytesIO(crops.rows[0].image)).size == (32, 32)


def test_perceptual_hash_survives_compression_and_scale():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).resize((224, 224), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.resize((100, 100)).save(buffer, "JPEG", quality=60)
    other = Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).resize((224, 224))
    distance = lambda a, b: (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()  # noqa: E731
    assert distance(image, Image.open(buffer)) <= 3 and distance(image, other) > 12


def two_squares(number):
    """Two textured faces, the left one larger; and the places that `sees_both` finds."""
    pixels = np.full((120, 200, 3), 90, np.uint8)
    rng = np.random.default_rng(0)
    pixels[20:80, 10:70] = rng.integers(0, 255, (60, 60, 3))
    pixels[30:70, 130:170] = rng.integers(0, 255, (40, 40, 3))
    return Frame(number, number / 10, pixels)


def sees_both(pixels):
    return [Face((130.0, 30.0, 170.0, 70.0), None, 0.9), Face((10.0, 20.0, 70.0, 80.0), None, 0.9)]


@pytest.mark.parametrize("masked", [None, (130, 30, 170, 70), (0, 0, 5, 5)])
def test_the_face_that_the_mask_covers_is_taken(masked):
    frames = [two_squares(number) for number in range(8)]
    masks = None
    if masked is not None:
        mask = np.zeros((120, 200), np.uint8)
        mask[masked[1] : masked[3], masked[0] : masked[2]] = 255
        masks = partial(iter, [(number, mask) for number in range(2, 8)])  # the first frames have none
    crops = make_crops(lambda: frames, sees_both, CropSettings(size=64, format="png"), masks)
    assert crops.people == 2
    if masked == (0, 0, 5, 5):
        assert not crops.rows and {reason for _, reason in crops.lost} == {"no face meets the mask of what was forged"}
        return
    assert len(crops.rows) == 8
    if masked is None:
        assert all(row.mask is None for row in crops.rows)
    else:
        assert [row.mask is None for row in crops.rows] == [True, True] + [False] * 6
        cut = np.asarray(Image.open(io.BytesIO(crops.rows[4].mask)))
        assert cut.shape == (64, 64) and cut[32, 32] == 255 and cut[0, 0] == 0
        assert (cut > 127).mean() == pytest.approx(1 / 1.3**2, abs=0.05)  # the box is widened 1.3 times


def test_who_is_seen_in_a_tenth_of_the_frames_is_a_subject():
    def sees_sometimes(pixels):
        return sees_both(pixels)[:1] if pixels[0, 0, 0] else []

    for seen, found in ((3, False), (4, True)):
        frames = [two_squares(number) for number in range(32)]
        for number in range(seen, 32):
            frames[number].pixels[0, 0] = 0
        crops = make_crops(partial(iter, frames), sees_sometimes, CropSettings(size=32))
        assert bool(crops.rows) is found and len(crops.rows) + len(crops.lost) == 32
        if not found:
            assert (0, "nobody is seen in 10% of the frames, the most in 3") in crops.lost


class SeesUpright:
    """A detector that finds a face only where its bright forehead is above its dark chin."""

    def __call__(self, pixels):
        height, width = pixels.shape[:2]
        rows, columns = np.nonzero(pixels.max(-1) > 200)
        if not len(rows) or rows.mean() > height / 2 - 1 or abs(columns.mean() - width / 2) > width / 4:
            return []
        return [Face((10.0, 5.0, float(width - 10), float(height - 10)), None, 0.99)]


def lying(turns, mask=False):
    """A bright bar at the top of a grey picture, turned counter-clockwise."""
    pixels = np.full((60, 80, 3), 0 if mask else 90, np.uint8)
    pixels[4:20, 20:60] = 255
    return np.rot90(pixels, turns).copy()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_faces_that_lie_on_their_side_are_turned(turns):
    """Pictures, masks and crops are turned together; the result says by how much."""
    expected = make_crops(lambda: [Frame(0, 0.0, lying(0))], SeesUpright(), CropSettings(size=32, format="png"))
    crops = make_crops(
        lambda: [Frame(number, 0.1 * number, lying(turns)) for number in range(3)],
        SeesUpright(),
        CropSettings(size=32, format="png"),
        lambda: iter([(0, lying(turns, mask=True).max(-1)), (2, lying(turns, mask=True).max(-1))]),
    )
    assert [row.frame for row in crops.rows] == [0, 1, 2] and crops.turned == (360 - 90 * turns) % 360
    assert all(row.image == expected.rows[0].image for row in crops.rows)
    top, bottom = np.split(np.asarray(Image.open(io.BytesIO(crops.rows[0].mask))), 2)
    assert top.mean() > 80 and bottom.max() == 0 and crops.rows[1].mask is None


def test_a_picture_without_any_face_is_not_turned():
    crops = make_crops(lambda: [Frame(0, 0.0, lying(0))], lambda _: [], CropSettings())
    assert not crops.rows and not crops.turned
