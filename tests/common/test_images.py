import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gmdf_hf.common.images import FORMATS, ImageError, open_image
from gmdf_hf.preparation.media import open_media

ORIENTATION = 274
# A picture with four different corners distinguishes all eight orientations.
CORNERS = Image.fromarray(np.kron(np.array([[10, 90], [170, 250]], np.uint8), np.ones((8, 12), np.uint8)), "L")


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_of_size(width, height):
    """A PNG with the given size in its header and pixels compressed by a factor of 1000."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(format, orientation):
    turns = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]
    stored = CORNERS.convert("RGB")
    for turn in turns:  # the inverse of the reader's rotation
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = open_image(encode(stored, format, exif=exif, **({"lossless": True} if format == "WEBP" else {})))
    assert image.mode == "RGB" and image.size == CORNERS.size
    np.testing.assert_allclose(np.asarray(image)[..., 0], np.asarray(CORNERS), atol=3)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(format):
    values = np.array([[0, 257, 65535, 32768]], np.uint16)
    image = open_image(encode(Image.fromarray(values), format))
    np.testing.assert_array_equal(np.asarray(image)[0, :, 0], [0, 1, 255, 128])


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "RGB"])
def test_modes_become_rgb(mode):
    color = (255, 255, 255) if mode in ("1", "L", "LA") else (255, 0, 0)
    image = Image.new("RGB", (8, 8), color).convert(mode)
    image = open_image(encode(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"))
    assert image.mode == "RGB"
    np.testing.assert_allclose(
        image.getpixel((4, 4)), (255, 255, 255) if mode in ("1", "L", "LA") else (255, 0, 0), atol=3
    )


def test_transparency_is_laid_on_white():
    hidden = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert open_image(encode(hidden)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("RGB", (4, 4), (10, 20, 30)).quantize(4)
    assert open_image(encode(palette, transparency=palette.getpixel((0, 0)))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    image = open_image(encode(frames[0], format, save_all=True, append_images=frames[1:]))
    np.testing.assert_allclose(image.getpixel((0, 0)), (255, 0, 0), atol=3)


def test_bombs_are_refused_before_decoding():
    bomb = png_of_size(8000, 8000)
    with pytest.raises(ImageError, match=r"big\.png: 8000x8000 pixels"):
        open_image(bomb, "big.png")
    with pytest.raises(ImageError, match=r"60000x60000|bomb"):
        open_image(png_of_size(60000, 60000), "big.png")
    assert open_image(encode(CORNERS), max_pixels=CORNERS.width * CORNERS.height).size == CORNERS.size
    with pytest.raises(ImageError, match="24x16"):
        open_image(encode(CORNERS), max_pixels=24 * 16 - 1)


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"]), st.data())
def test_damage_gives_an_image_or_the_one_error(format, data):
    content = bytearray(encode(CORNERS.convert("RGB"), format))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert open_image(content, "some.file").mode == "RGB"
    except ImageError as error:
        message = str(error)
        assert message.startswith("some.file: ")


def test_real_odd_files():
    root = os.environ.get("GMDF_REAL_DATA")
    if not root:
        pytest.skip("GMDF_REAL_DATA is not set")
    # One process for all of them, to measure their peak memory.
    program = (
        "import sys, resource, warnings; warnings.simplefilter('ignore')\n"
        "from pathlib import Path; from gmdf_hf.common.images import open_image, ImageError\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: image = open_image(path); assert image.mode == 'RGB'; print('ok', path.name, *image.size)\n"
        "    except ImageError as error: assert path.name in str(error); print('error', error)\n"
        "import re\n"  # not `ru_maxrss`, which includes the parent's memory at the start of the process
        "print('peak', re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", program, str(Path(root, "data/odd"))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    read = {line.split()[1]: tuple(map(int, line.split()[2:])) for line in lines if line.startswith("ok")}
    assert len(lines) == len(list(Path(root, "data/odd").iterdir())) + 1
    assert int(lines[-1].split()[1]) < 2**20  # KiB
    assert {name: read[name] for name in read if "Portrait" in name} == {
        f"exif_orient__Portrait_{n}.jpg": (1200, 1800) for n in (1, 3, 8)
    }
    upright = [
        np.asarray(open_image(Path(root, f"data/odd/exif_orient__Portrait_{n}.jpg")).reduce(60)) for n in (1, 3, 8)
    ]
    for other in upright[1:]:
        assert np.abs(upright[0].astype(int) - other).mean() < 8
    assert not any(word in name for name in read for word in ("bomb", "broken", "truncated_image", "not_enough"))
    assert "pillow__hopper.webp" in read and "pillow__hopper.avif" in read and "AVIF" in FORMATS


def test_what_is_no_file_is_named(tmp_path):
    """Reading a pipe or a device may never end."""
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "absent")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    reasons = {
        tmp_path / "pipe.png": "a named pipe, expected a file",
        tmp_path / "s": "a socket, expected a file",
        tmp_path / "folder.png": "a folder, expected a file",
        tmp_path / "dangling.png": "a link to a file that does not exist",
        tmp_path / "itself.png": "a link to a file that does not exist",
        Path("/dev/zero"): "a device, expected a file",
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / "absent.png": "no such file",
        str(tmp_path / "nul\0.png"): "cannot be read",
    }
    for path, reason in reasons.items():
        for read in (open_image, lambda path: list(open_media(path, 4).read(None))):
            with pytest.raises(ImageError, match=reason):
                read(path)
    postscript = tmp_path / "a.png"
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match=r"a\.png: not a readable image"):
        open_image(postscript)
