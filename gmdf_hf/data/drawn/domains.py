"""Five drawn domains of real and forged faces, to run the whole method without a download.

The domains differ in look (background, light, camera) and in forgery, as the data sets of the paper do (Fig. 5).
Genuine and forged videos of a domain share look and camera; a forged video is made from a genuine one, and the two
share a group. A row depends only on (domain, split, seed, video, frame), not on the number of rows drawn.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from gmdf_hf.common.schema import SPLITS
from gmdf_hf.data.drawn.forgeries import draw_settings, ellipse, forge, resample
from gmdf_hf.data.drawn.people import (
    COLOURS,
    LIGHTS,
    TEXTURES,
    Pose,
    Scene,
    describe,
    draw_expression,
    draw_identity,
    dress,
)
from gmdf_hf.data.drawn.portraits import IMAGE_SIZE, render

CAPTION_PARTS = 5


@dataclass(frozen=True)
class Look:
    """Look shared by the videos of a domain. Ranges are `(low, high)`; each video draws its own value.

    Attributes:
        method: The domain's forgery, one of `forgeries.METHODS`.
        backgrounds: Names of background colours.
        textures: Kinds of background.
        zoom: Head half height in half picture widths.
        roll: Spread of the head's roll in radians.
        contrast: Strength of the light's shading.
        depth_blur: Blur of the background in canvas pixels.
        blur: Lens blur, 1 is a 3 x 3 binomial filter.
        noise: Standard deviation of sensor noise, colours in [0, 1].
        saturation: Factor on colourfulness.
        cast: Spread of the factors on the three colours.
        quality: JPEG quality.
    """

    method: str
    backgrounds: tuple[str, ...] = tuple(COLOURS)
    textures: tuple[str, ...] = TEXTURES
    zoom: tuple[float, float] = (0.60, 0.76)
    roll: float = 0.08
    contrast: tuple[float, float] = (0.2, 0.4)
    depth_blur: tuple[float, float] = (0.0, 6.0)
    blur: tuple[float, float] = (0.0, 0.5)
    noise: tuple[float, float] = (0.03, 0.07)
    saturation: tuple[float, float] = (0.85, 1.1)
    cast: float = 0.04
    quality: tuple[int, int] = (80, 96)


@dataclass(frozen=True)
class Camera:
    """One video's camera (see `Look`); `side` is its resolution in pixels a side."""

    blur: float
    noise: float
    saturation: float
    gains: tuple[float, ...]
    quality: int
    side: int = IMAGE_SIZE


_LOOKS = {
    "swap": Look("swap", roll=0.12),
    "reenact": Look("reenact", backgrounds=("green",), zoom=(0.58, 0.70), contrast=(0.15, 0.3)),
    "upsample": Look(
        "upsample",
        backgrounds=("red", "yellow", "purple", "pink", "blue"),
        contrast=(0.35, 0.55),
        saturation=(1.3, 1.8),
        cast=0.10,
    ),
    "inpaint": Look("inpaint", zoom=(0.88, 1.05), roll=0.05, depth_blur=(4.0, 10.0), noise=(0.035, 0.07)),
    "compress": Look(
        "swap", backgrounds=("grey", "white"), textures=("plain", "gradient"), saturation=(0.6, 0.85), quality=(30, 55)
    ),
}
_WEB_LOOK = Look(
    "none", noise=(0.0, 0.08), zoom=(0.55, 1.05), roll=0.1, contrast=(0.15, 0.55), saturation=(0.5, 1.8), cast=0.08
)
_ANONYMOUS = "blurred face"  # as newspapers and street views anonymise passers-by
DRAWN_DOMAINS = tuple(_LOOKS)
DRAWN_PREFIX = "drawn:"  # of a domain's path


def draw_domain(name: str, split: str, num_videos: int, frames_per_video: int = 4, seed: int = 0) -> Iterator[dict]:
    """Draw a domain's videos, alternating between a genuine one and the forged one made from it.

    Args:
        name: One of `DRAWN_DOMAINS`.
        split: "train", "validation" or "test"; no person is in two of them.
        num_videos: Number of videos, even: half are real, half are fake.
        frames_per_video: Frames of each video; they differ in pose, expression and noise.
        seed: Another seed draws other people.

    Returns:
        Rows, one a frame: `image` (RGB, 64 x 64), `label` (0 real, 1 fake), `video_id`, `frame`, `method` ("real" or
        the forgery), `group` (shared by a genuine video and the forged one made from it), `caption`.

    Raises:
        ValueError: If the name or the split is unknown, or a number is out of range.
    """
    if name not in DRAWN_DOMAINS:
        raise ValueError(f"Unknown drawn domain {name!r}; expected one of {', '.join(DRAWN_DOMAINS)}.")
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; expected one of {', '.join(SPLITS)}.")
    if num_videos < 2 or num_videos % 2:
        raise ValueError(f"num_videos must be even and at least 2, as half of them are fake; found {num_videos}.")
    if frames_per_video < 1:
        raise ValueError(f"frames_per_video must be at least 1, found {frames_per_video}.")
    # The rows come from a separate generator, so that the errors above are raised at the call.
    return _draw_pairs(name, split, num_videos // 2, frames_per_video, seed)


def draw_web_faces(num_images: int, seed: int = 0) -> Iterator[dict]:
    """Draw genuine faces of mixed looks and qualities, similar to pictures from the web.

    Args:
        num_images: Number of pictures.
        seed: Another seed draws other people.

    Yields:
        `image` (RGB, 64 x 64) and `caption`, which also names the picture's quality.
    """
    for index in range(num_images):
        rng = _generator("web", str(seed), str(index))
        person, scene, camera = draw_identity(rng), _draw_scene(_WEB_LOOK, rng), _draw_camera(_WEB_LOOK, rng)
        camera, quality = _spoil(camera, rng)
        face = draw_expression(rng.uniform(-0.3, 0.9), rng)
        portrait = render(person, face, _draw_pose(_WEB_LOOK, rng), scene, rng)
        picture = _expose(portrait.rgb, camera, rng)
        if quality == _ANONYMOUS:
            radius_u, radius_v = rng.uniform(0.4, 0.7, 2)
            mask = ellipse(portrait.u, portrait.v, (0.0, 0.1), (radius_u, radius_v), rng.uniform(0.05, 0.3))
            picture = picture + mask * (resample(picture, int(rng.integers(10, 36))) - picture)
        parts = describe(person, face, scene)
        kept = [parts[i] for i in rng.permutation(len(parts))[: CAPTION_PARTS - 1]]
        yield {"image": _compress(picture, camera), "caption": ", ".join([quality, *kept])}


def _draw_pairs(name: str, split: str, num_pairs: int, num_frames: int, seed: int) -> Iterator[dict]:
    look = _LOOKS[name]
    for pair in range(num_pairs):
        rng = _generator(name, split, str(seed), str(pair))
        person = draw_identity(rng)
        scene, camera, pose = _draw_scene(look, rng), _draw_camera(look, rng), _draw_pose(look, rng)
        mood, other_mood, how = rng.uniform(-0.3, 0.9), rng.uniform(-0.3, 0.9), draw_settings(rng)
        donor = dress(draw_identity(rng), person) if look.method == "swap" else person
        real: list[dict] = []
        fake: list[dict] = []
        for frame in range(num_frames):
            rng = _generator(name, split, str(seed), str(pair), str(frame))
            now = _nudge(pose, rng)
            face = draw_expression(mood, rng)
            other = draw_expression(other_mood, rng) if look.method == "reenact" else face
            portrait = render(person, face, now, scene, rng)
            target = _expose(portrait.rgb, camera, rng)
            source = _expose(render(donor, other, now, scene, rng, face_only=True).rgb, replace(camera, noise=0.0), rng)
            noise = camera.noise * rng.standard_normal(source.shape, np.float32)
            forged = forge(look.method, target, source, portrait.u, portrait.v, noise, how)
            order = rng.permutation(7)
            for rows, picture, shown, method in ((real, target, face, "real"), (fake, forged, other, look.method)):
                parts = describe(person, shown, scene)
                kept = [parts[i] for i in order if i < len(parts)][:CAPTION_PARTS]
                rows.append(
                    {
                        "image": _compress(picture, camera),
                        "label": int(method != "real"),
                        "video_id": f"{name}-{split}-{seed}-{2 * pair + int(method != 'real'):05d}",
                        "frame": frame,
                        "method": method,
                        "group": f"{name}-{split}-{seed}-{pair:05d}",
                        "caption": ", ".join(kept),
                    }
                )
        yield from real + fake


def _generator(*path: str) -> np.random.Generator:
    # crc32, not hash(): Python's string hashes differ between processes.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([zlib.crc32(step.encode()) for step in path])))


def _draw_scene(look: Look, rng: np.random.Generator) -> Scene:
    background = str(rng.choice(look.backgrounds))
    return Scene(
        background=background,
        colour=tuple(np.clip(np.array(COLOURS[background]) * rng.normal(1, 0.12) + rng.normal(0, 0.02, 3), 0.02, 1)),
        texture=str(rng.choice(look.textures)),
        angle=rng.uniform(-3, 3),
        light=str(rng.choice(list(LIGHTS))),
        contrast=rng.uniform(*look.contrast),
        depth_blur=rng.uniform(*look.depth_blur),
    )


def _draw_camera(look: Look, rng: np.random.Generator) -> Camera:
    return Camera(
        blur=rng.uniform(*look.blur),
        noise=rng.uniform(*look.noise),
        saturation=rng.uniform(*look.saturation),
        gains=tuple(rng.normal(1, look.cast, 3).tolist()),
        quality=int(rng.integers(look.quality[0], look.quality[1] + 1)),
    )


def _draw_pose(look: Look, rng: np.random.Generator) -> Pose:
    return Pose(
        yaw=rng.uniform(-0.8, 0.8),
        roll=rng.normal(0, look.roll),
        zoom=rng.uniform(*look.zoom),
        x=rng.normal(0, 0.05),
        y=rng.normal(0.04, 0.05),
    )


def _nudge(pose: Pose, rng: np.random.Generator) -> Pose:
    """Return a slightly changed pose, for the next frame."""
    return Pose(
        yaw=min(max(pose.yaw + rng.normal(0, 0.25), -1.0), 1.0),
        roll=pose.roll + rng.normal(0, 0.03),
        zoom=pose.zoom + rng.normal(0, 0.02),
        x=pose.x + rng.normal(0, 0.02),
        y=pose.y + rng.normal(0, 0.02),
    )


def _spoil(camera: Camera, rng: np.random.Generator) -> tuple[Camera, str]:
    """Degrade most cameras in one property; return the camera and the caption words for it."""
    flaw = rng.integers(9)
    if flaw == 0:
        return replace(camera, blur=rng.uniform(1.2, 3.0)), "blurry photo"
    if flaw == 1:
        return replace(camera, noise=rng.uniform(0.085, 0.14)), "noisy photo"
    if flaw == 2:
        return replace(camera, quality=int(rng.integers(8, 30))), "heavily compressed photo"
    if flaw == 3:
        return replace(camera, side=int(rng.integers(18, 34))), "low resolution photo"
    if flaw == 4:
        return replace(camera, noise=rng.uniform(0.0, 0.005), blur=0.0, quality=96), "clean sharp photo"
    if flaw in (5, 6):
        return camera, _ANONYMOUS
    return camera, "grainy photo" if camera.noise > 0.03 else "clear photo"


def _expose(rgb: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Simulate the camera: lens, colours, sensor. Input and output have shape (64, 64, 3) in [0, 1]."""
    left = camera.blur
    while left > 0:
        for _ in range(2):
            rgb = rgb.swapaxes(0, 1)
            ends = np.concatenate((rgb[:1], rgb[:-1])) + np.concatenate((rgb[1:], rgb[-1:]))
            rgb = rgb + np.float32(0.5 * min(left, 1)) * (0.5 * ends - rgb)
        left -= 1
    grey = rgb @ np.full((3, 1), 1 / 3, np.float32)
    rgb = (grey + np.float32(camera.saturation) * (rgb - grey)) * np.array(camera.gains, np.float32)
    if camera.side < IMAGE_SIZE:
        rgb = resample(rgb, camera.side)
    if camera.noise:
        rgb = rgb + np.float32(camera.noise) * rng.standard_normal(rgb.shape, np.float32)
    return np.clip(rgb, 0, 1)


def _compress(rgb: np.ndarray, camera: Camera) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray((rgb * 255 + 0.5).astype(np.uint8)).save(file, "JPEG", quality=camera.quality)
    return Image.open(file).convert("RGB")
