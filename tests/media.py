"""Small real-codec videos and images for tests."""

from collections import Counter
from pathlib import Path

import av
import numpy as np


def write_video(path, frames, rate=25, codec="libx264", options=None, muxer=None):
    """Encode RGB frames of shape `(height, width, 3)` and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = None
        for pixels in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options or {})
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    return path


def numbered(total, height=64, width=96):
    """Frames whose brightness tells their number: `round(mean / 2)`, for at most 120 of them."""
    for number in range(total):
        yield np.full((height, width, 3), 2 * number + 4, np.uint8)


def number_of(pixels):
    """The number of a frame of `numbered` after a lossy codec."""
    return round((float(pixels.mean()) - 4) / 2)


def fill(folder, names, video):
    """Put the same video under many names, as hard links."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).hardlink_to(video)


def counts(listing):
    """Number of records by (split, method)."""
    return dict(Counter((record.split, record.method) for record in listing.records))
