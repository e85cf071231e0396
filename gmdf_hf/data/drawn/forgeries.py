"""Forgeries of drawn faces, each with the artefact of its real counterpart.

All functions work on float pictures (64, 64, 3) in [0, 1]. `target` is the genuine camera picture with sensor noise;
`source` is the generator's output: the same pose without noise. The artefacts are inconsistencies within the picture:
sharpness and grain that differ between the face and its surroundings, a seam, a periodic pattern.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Settings:
    """Forgery parameters of one video, shared by its frames.

    Attributes:
        softness: Width of the seam in head half heights.
        resolution: Side in pixels at which the generator works, of 64.
        grain: Noise put back on the generated part, as a share of the camera's.
        tint: Residual error of the three colours after colour correction, as a factor.
        period: Strength of the pattern that upsampling leaves, as a factor.
        reach: Size of the forged region over its usual size.
        place: Shift `(u, v)` of the forged region in head half heights.
    """

    softness: float
    resolution: int
    grain: float
    tint: tuple[float, ...]
    period: float
    reach: float
    place: tuple[float, float]


def draw_settings(rng: np.random.Generator) -> Settings:
    """Draw the settings of one forged video at random."""
    return Settings(
        softness=rng.uniform(0.05, 0.2),
        resolution=int(rng.integers(26, 42)),
        grain=rng.uniform(0.0, 0.3),
        tint=tuple(rng.normal(1, 0.02, 3).tolist()),
        period=rng.uniform(0.008, 0.025),
        reach=rng.uniform(0.9, 1.1),
        place=(rng.normal(0, 0.03), rng.normal(0, 0.03)),
    )


def forge(
    method: str, target: np.ndarray, source: np.ndarray, u: np.ndarray, v: np.ndarray, noise: np.ndarray, how: Settings
) -> np.ndarray:
    """Forge one picture.

    Args:
        method: One of `METHODS`.
        target: Genuine picture, (64, 64, 3) in [0, 1].
        source: Picture to insert, same shape.
        u: Face coordinates of the target's pixels to the right, (64, 64).
        v: The same downwards.
        noise: Sensor noise for the forged part, of the shape of `target`; a share `how.grain` of it is added.
        how: The video's settings.

    Returns:
        The forged picture; outside of the forged region it is the target's.
    """
    face, mask = _FORGERS[method](source, u, v, how)
    # Colours are corrected to the target's mean under the mask, except for the error `tint`.
    weight = mask / mask.sum()
    wanted = (weight * target).sum((0, 1)) * np.array(how.tint, np.float32)
    face = face + (wanted - (weight * face).sum((0, 1))) + how.grain * noise
    return np.clip(target + mask * (face - target), 0, 1)


def _swap(source: np.ndarray, u: np.ndarray, v: np.ndarray, how: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Another person's inner face under a soft mask."""
    return resample(source, how.resolution), _region(u, v, (0.0, 0.10), (0.52, 0.62), how)


def _reenact(source: np.ndarray, u: np.ndarray, v: np.ndarray, how: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Mouth and chin with another expression."""
    return resample(source, how.resolution), _region(u, v, (0.0, 0.56), (0.46, 0.40), how)


def _upsample(source: np.ndarray, u: np.ndarray, v: np.ndarray, how: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The whole face upsampled from half the size, with the uneven overlap of a transposed convolution."""
    size = source.shape[0]
    grown = 0.5 * source + 0.5 * resample(source, size // 2)
    uneven = how.period * (1 - 2 * (np.arange(size) % 2)).astype(np.float32)
    grown *= 1 + uneven[:, None, None] + uneven[None, :, None]
    return grown, _region(u, v, (0.0, 0.05), (0.56, 0.76), how)


def _inpaint(source: np.ndarray, u: np.ndarray, v: np.ndarray, how: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The middle of the face is regenerated: nothing moves, but grain and fine texture are lost."""
    return 0.5 * source + 0.5 * resample(source, how.resolution), _region(u, v, (0.0, 0.15), (0.54, 0.62), how)


_FORGERS = {"swap": _swap, "reenact": _reenact, "upsample": _upsample, "inpaint": _inpaint}
METHODS = tuple(_FORGERS)


def _region(
    u: np.ndarray, v: np.ndarray, centre: tuple[float, float], radii: tuple[float, float], how: Settings
) -> np.ndarray:
    centre = (centre[0] + how.place[0], centre[1] + how.place[1])
    return ellipse(u, v, centre, (radii[0] * how.reach, radii[1] * how.reach), how.softness)


def ellipse(
    u: np.ndarray, v: np.ndarray, centre: tuple[float, float], radii: tuple[float, float], softness: float
) -> np.ndarray:
    """Return a mask (64, 64, 1) of an ellipse on the face, its edge `softness` wide; all in face coordinates."""
    squares = ((u - centre[0]) / radii[0]) ** 2 + ((v - centre[1]) / radii[1]) ** 2
    return np.clip((1 - np.sqrt(squares)) * (min(radii) / softness) + 0.5, 0, 1)[..., None]


def resample(picture: np.ndarray, side: int) -> np.ndarray:
    """Reduce a picture to `side` x `side` pixels and enlarge it again, which removes its finest detail."""
    return _resize(_resize(picture, side), picture.shape[0])


def _resize(picture: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
