"""Opening untrusted image files."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image

MAX_PIXELS = 50_000_000
MAX_BYTES = 256 * 2**20

# Common formats of photographs and frames. Pillow reads more formats, but it starts other programs for some (EPS) and
# decodes others before their size can be checked (ICO); untrusted files in those formats are rejected.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm"),
    *(".pgm", ".heic", ".heif"),
)
try:  # HEIF, the format of phones; Pillow alone does not read it
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)
except ImportError:
    pass

_ORIENTATION_TAG, _BITS_PER_SAMPLE_TAG = 274, 258
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """The image cannot be read; the message names the file and the reason."""

    exit_code = 3
    hint = "Open the file in an image viewer, and convert it to JPEG or PNG."


def open_image(source: str | Path | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one image as upright 8-bit RGB.

    EXIF orientation is applied, 16-bit grey is scaled to 8 bits, transparent images get a white background, and an
    animation gives its first frame. The size in the header is checked before anything is decoded.

    Args:
        source: File, or the bytes of one.
        name: Name of the image in messages; the path when None.
        max_pixels: Largest accepted width x height.

    Returns:
        Loaded image of mode RGB.

    Raises:
        ImageError: If the file is missing, larger than `MAX_BYTES`, not in one of `FORMATS`, larger than
            `max_pixels`, truncated or damaged.
    """
    if name is None:
        name = "<bytes>" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bytes(Path(source), name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return upright_rgb(image, name, max_pixels)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif", b"msf") and "HEIF" not in FORMATS:
            raise ImageError(f"{name}: HEIC pictures need the package pillow-heif: pip install pillow-heif.") from error
        if not data:
            raise ImageError(f"{name}: an empty file, expected a picture or video.") from error
        raise ImageError(f"{name}: not a readable image of a known format ({', '.join(FORMATS)}).") from error
    # Pillow's parsers raise many types of exception for damaged files (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise ImageError(f"{name}: damaged or unsupported image ({type(error).__name__}: {error}).") from error


def upright_rgb(image: Image.Image, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Turn an opened image into upright 8-bit RGB, as `open_image` does.

    Args:
        image: Image whose pixels need not be loaded yet.
        name: Name of the image in messages.
        max_pixels: Largest accepted width x height.

    Raises:
        ImageError: If the image is larger than `max_pixels` or its mode has no defined white level.
    """
    check_size(image, name, max_pixels)
    image.load()
    return _to_rgb(_upright(image), name)


def why_no_file(path: str | os.PathLike[str]) -> str:
    """Say why a path is no regular file; empty for a file. Pipes and devices, which may never end, are none."""
    if os.path.isfile(path):
        return ""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        if os.path.islink(path):
            return "a link to a file that does not exist"
        reason = getattr(error, "strerror", None) or str(error)
        return "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason})"
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return f"{kinds.get(kind, 'a device')}, expected a file"


def read_bytes(path: Path, name: str) -> bytes:
    """Content of a regular file of at most `MAX_BYTES`.

    Raises:
        ImageError: If it is missing, larger, or cannot be read.
    """
    if problem := why_no_file(path):
        raise ImageError(f"{name}: {problem}.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror}).") from error
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: file of more than {MAX_BYTES} bytes, the most that is read.")
    return data


def check_size(image: Image.Image, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Reject an image by the size in its header.

    Raises:
        ImageError: If it has no pixels or more than `max_pixels`.
    """
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise ImageError(f"{name}: {width}x{height} pixels, expected between 1 and {max_pixels} in all.")


def _upright(image: Image.Image) -> Image.Image:
    # After `load`: it already rotates TIFF files, and Pillow then reports no orientation.
    operation = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    return image if operation is None else image.transpose(operation)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # Pillow would clip at 255. A 12-bit TIFF is stored in 16 bits, but its white level is 4095.
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE_TAG, (16,))[0]
        white = 2**bits - 1
        values = np.minimum(np.asarray(image).astype(np.uint32), white)
        return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        # 32-bit integers and floats have no defined white level.
        raise ImageError(f"{name}: pixels of mode {image.mode}, expected grey, palette, RGB or CMYK of 8 or 16 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")
