"""Conversion of decoded video frames to display RGB: square pixels, colour matrix, HDR tone mapping."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

# Values of FFmpeg's AVColorSpace and AVColorTransferCharacteristic.
UNSPECIFIED, PQ, HLG = 2, 16, 18
MAX_ASPECT = 10  # of a pixel; larger values are header errors
DIFFUSE_WHITE = 203.0  # luminance of diffuse white in HDR, in cd/m2 (ITU-R BT.2408)
KNEE = 0.7  # levels above this are compressed, lower ones unchanged
TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)


def to_rgb(frame: av.VideoFrame, pixel_aspect: Fraction | None = None, transfer: int = UNSPECIFIED) -> np.ndarray:
    """Convert a frame to 8-bit RGB of square pixels.

    The colour matrix is that of the stream. If the stream has none, it is BT.709 for high-definition pictures and for
    pictures stored at about 16:9 or wider, and BT.601 otherwise. HDR (HLG and PQ) is tone-mapped to BT.709.

    Args:
        frame: Decoded frame.
        pixel_aspect: Width of a pixel over its height; None for square pixels.
        transfer: The stream's transfer characteristic.

    Returns:
        Array of shape `(height, width, 3)` and type uint8.
    """
    width = shown_width(frame, pixel_aspect)
    untagged_hd = frame.colorspace == UNSPECIFIED and _is_high_definition(frame.width, frame.height)
    is_hdr = transfer in (HLG, PQ)
    rgb = frame.reformat(
        width=None if width == frame.width else width,
        format="rgb48le" if is_hdr else "rgb24",
        src_colorspace=Colorspace.ITU709 if untagged_hd else None,
        interpolation=None if width == frame.width else Interpolation.BICUBIC,
    ).to_ndarray()
    return _tone_map(rgb, transfer) if is_hdr else rgb


def shown_width(frame: av.VideoFrame, pixel_aspect: Fraction | None) -> int:
    """Width of a frame in square pixels."""
    if pixel_aspect and Fraction(1, MAX_ASPECT) <= pixel_aspect <= MAX_ASPECT:
        return max(1, round(frame.width * pixel_aspect))
    return frame.width


def _is_high_definition(width: int, height: int) -> bool:
    return width >= 1280 or height > 576 or width >= 1.7 * height


def _tone_map(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """Tone-map HDR in BT.2020 to SDR in BT.709; diffuse white becomes white.

    Args:
        pixels: Encoded values of shape `(height, width, 3)` and type uint16.
        transfer: `HLG` or `PQ`.
    """
    table = (_light_of_hlg if transfer == HLG else _light_of_pq)(np.linspace(0, 1, 2**16))
    light = table.astype(np.float32)[pixels]
    if transfer == HLG:  # system gamma of a display of 1000 cd/m2, ITU-R BT.2100
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= (1000.0 / DIFFUSE_WHITE) * np.power(np.maximum(luminance, 1e-6), 0.2)[..., None]
    light = np.maximum(light @ TO_BT709.T, 0)
    brightest = np.maximum(light.max(-1, keepdims=True), 1e-6)
    peak = 1000.0 / DIFFUSE_WHITE
    excess = np.clip((brightest - KNEE) / (peak - KNEE), 0, 1)
    # The curve has slope 1 at the knee and maps the peak to 1; equal for all channels, to preserve the hue.
    steep = (peak - KNEE) / (1 - KNEE)
    toned = np.where(brightest > KNEE, KNEE + (1 - KNEE) * (1 - np.power(1 - excess, steep)), brightest)
    return np.rint(255 * np.power(np.clip(light * (toned / brightest), 0, 1), 1 / 2.2)).astype(np.uint8)


def _light_of_hlg(values: np.ndarray) -> np.ndarray:
    """Scene light in [0, 1] (ITU-R BT.2100, inverse OETF)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)


def _light_of_pq(values: np.ndarray) -> np.ndarray:
    """Display light relative to diffuse white (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = np.power(values, 1 / m2)
    return 10000 / DIFFUSE_WHITE * np.power(np.maximum(root - c1, 0) / (c2 - c3 * root), 1 / m1)
