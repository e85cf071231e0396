"""Drawn faces: renders person, expression, pose and scene as a shaded portrait of 64 x 64 pixels.

Face coordinates `(u, v)` have their origin between nose bridge and nose tip, v down, and the head's half height as
unit; they rotate, shift and scale with the pose, so a point of the face has the same coordinates in every frame.
Pictures are painted at twice the size and averaged 2 x 2, for anti-aliased edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gmdf_hf.data.drawn.people import LIGHTS, Expression, Identity, Pose, Scene

IMAGE_SIZE = 64
_CANVAS_SIZE = 2 * IMAGE_SIZE
_PIXEL = 2 / _CANVAS_SIZE  # of the canvas, which spans -1 to 1


@dataclass(frozen=True)
class Portrait:
    """A painted picture `rgb` (64, 64, 3) in [0, 1] and the face coordinates `u`, `v` (64, 64) of its pixels."""

    rgb: np.ndarray
    u: np.ndarray
    v: np.ndarray


def render(
    person: Identity,
    expression: Expression,
    pose: Pose,
    scene: Scene,
    rng: np.random.Generator,
    face_only: bool = False,
) -> Portrait:
    """Paint one picture as seen by an ideal camera: no sensor noise, no blur, no compression.

    Args:
        person: Who is painted.
        expression: The face's expression.
        pose: The head's place in the picture.
        scene: Background and light.
        rng: Random number generator of skin, hair and background texture.
        face_only: Paint skin colour instead of background, body and hair behind the head, as a face generator does;
            takes two thirds of the time.

    Returns:
        The portrait and its face coordinates.
    """
    canvas = _Canvas(pose)
    if face_only:
        canvas.rgb += _planes(person.skin)
    else:
        canvas.rgb += _background(scene, rng)
        _paint_body(canvas, person, scene)
        if person.hair_style != "bald":
            _paint_back_hair(canvas, person, scene, rng)
    _paint_head(canvas, person, expression, scene, rng)
    canvas.turn(0.16 * pose.yaw)  # facial features are nearer to the camera than the outline, so they move further
    _paint_nose(canvas, person, scene)
    _paint_mouth(canvas, person, expression)
    for side in (-1, 1):
        _paint_eye(canvas, person, expression, side)
    if person.glasses:
        _paint_glasses(canvas, person)
    rgb = _halve(np.clip(canvas.rgb, 0, 1)).transpose(1, 2, 0)
    return Portrait(np.ascontiguousarray(rgb), _halve(canvas.u), _halve(canvas.v))


Colour = tuple[float, ...] | np.ndarray  # three numbers or three planes


class _Canvas:
    """Colour planes `rgb` (3, S, S) with the face coordinates of their pixels, painted part by part."""

    def __init__(self, pose: Pose) -> None:
        axis = (np.arange(_CANVAS_SIZE, dtype=np.float32) + 0.5) * _PIXEL - 1
        cos, sin = math.cos(pose.roll) / pose.zoom, math.sin(pose.roll) / pose.zoom
        x, y = (axis - pose.x)[None, :], (axis - pose.y)[:, None]
        self.u = cos * x + sin * y
        self.v = cos * y - sin * x
        self.pose = pose
        self.shift = 0.0
        self.pixel = _PIXEL / pose.zoom  # one canvas pixel in face units
        self.rgb = np.zeros((3, _CANVAS_SIZE, _CANVAS_SIZE), np.float32)

    def turn(self, shift: float) -> None:
        """Move the origin of u by `shift` to the picture's right."""
        self.u -= np.float32(shift)
        self.shift += shift

    def near(self, u: float, v: float, reach_u: float, reach_v: float) -> tuple[tuple, np.ndarray, np.ndarray]:
        """Return the window around a place on the face, and the coordinates in it relative to that place."""
        pose, cos, sin = self.pose, math.cos(self.pose.roll), math.sin(self.pose.roll)
        x = pose.x + pose.zoom * (cos * (u + self.shift) - sin * v)
        y = pose.y + pose.zoom * (sin * (u + self.shift) + cos * v)
        reach_x, reach_y = reach_u + abs(sin) * reach_v, reach_v + abs(sin) * reach_u

        def span(centre: float, reach: float) -> slice:
            low, high = (centre + 1) / _PIXEL - reach / self.pixel, (centre + 1) / _PIXEL + reach / self.pixel
            return slice(max(int(low) - 1, 0), max(min(int(high) + 3, _CANVAS_SIZE), 0))

        window = (span(y, reach_y), span(x, reach_x))
        return window, self.u[window] - np.float32(u), self.v[window] - np.float32(v)

    def fill(self, inside: np.ndarray, colour: Colour, window: tuple, soft: float = 0.0) -> None:
        """Paint `colour` where `inside`, a distance to the part's edge in face units, is positive."""
        self.blend(np.clip(inside / np.float32(self.pixel + soft) + np.float32(0.5), 0, 1), colour, window)

    def blend(self, mask: np.ndarray, colour: Colour, window: tuple) -> None:
        """Mix `colour` into the window with weight `mask`."""
        part = self.rgb[(slice(None), *window)]
        part += mask * ((colour if np.ndim(colour) == 3 else _planes(colour)) - part)


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    axis, shape = np.linspace(-1, 1, _CANVAS_SIZE, dtype=np.float32), (_CANVAS_SIZE, _CANVAS_SIZE)
    if scene.texture == "leafy":
        tone = 1 + 0.22 * _smooth_noise(rng, (9, 9), shape) + 0.11 * _smooth_noise(rng, (22, 22), shape)
    elif scene.texture == "striped":
        stripes = 1 + 0.14 * np.sign(np.sin((scene.angle + 9) * axis + scene.angle))
        tone = np.broadcast_to(stripes, shape)
    elif scene.texture == "gradient":
        tone = 1 + 0.3 * (math.cos(scene.angle) * axis[:, None] + math.sin(scene.angle) * axis)
    else:
        tone = 1 + 0.05 * _smooth_noise(rng, (5, 5), shape)
    if scene.depth_blur:
        tone = _blur(tone, scene.depth_blur)
    return _planes(scene.colour) * tone


def _paint_body(canvas: _Canvas, person: Identity, scene: Scene) -> None:
    window, u, v = canvas.near(0.0, 1.5, 1.6, 1.2)
    shade = 1 + 0.5 * scene.contrast * LIGHTS[scene.light][0] * u
    chest = 1 - np.sqrt((u / 1.45) ** 2 + ((v - 0.45) / 0.62) ** 2)
    canvas.fill(chest, _planes(person.shirt) * shade, window)
    neck = np.minimum(0.42 - 0.1 * np.maximum(v + 0.3, 0) - np.abs(u), np.minimum(v + 1.1, 0.05 - v))
    canvas.fill(neck, _planes(person.skin) * (0.78 * shade), window, soft=0.06)


def _paint_back_hair(canvas: _Canvas, person: Identity, scene: Scene, rng: np.random.Generator) -> None:
    window, u, v = canvas.near(0.0, 0.0, 1.35 * person.head_width, 1.4)
    width = person.head_width
    outline = 1 - np.sqrt((u / (1.14 * width)) ** 2 + ((v + 0.1) / 1.1) ** 2)
    if person.hair_style == "long":
        outline = np.maximum(outline, np.minimum(1.16 * width - np.abs(u), np.minimum(v + 0.2, 1.15 - v)))
    if person.hair_style == "curly":
        outline += 0.10 + 0.13 * _smooth_noise(rng, (14, 10), u.shape)
    shade = 1 + 0.5 * scene.contrast * LIGHTS[scene.light][0] * u
    canvas.fill(outline, _hair(person, shade, rng), window, soft=0.05)


def _hair(person: Identity, shade: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    strands = _smooth_noise(rng, (12, 9) if person.hair_style == "curly" else (5, 26), shade.shape)
    return _planes(person.hair) * (shade * (1 + 0.30 * strands)) + 0.02 * strands


def _paint_head(
    canvas: _Canvas, person: Identity, expression: Expression, scene: Scene, rng: np.random.Generator
) -> None:
    for side in (-1, 1):
        ear, du, dv = canvas.near(side * person.head_width, 0.0, 0.15, 0.25)
        canvas.fill(0.1 - np.sqrt(du * du + (0.5 * dv) ** 2), _planes(person.skin) * 0.88, ear, soft=0.03)
    window, u, v = canvas.near(0.0, 0.0, person.head_width + 0.08, 1.12)
    light, skin = LIGHTS[scene.light], _planes(person.skin)
    nx = u / (person.head_width * (1 - person.jaw * np.clip(v, 0, 1.2) ** 2))
    ny = v / np.where(v > 0, np.float32(1 + 0.06 * expression.mouth_open), np.float32(1))
    radius = nx * nx + ny * ny
    facing = np.sqrt(np.clip(1 - radius, 0, 1))
    pores = rng.standard_normal(u.shape, np.float32)
    shade = 1 + 0.022 * pores + 0.025 * _smooth_noise(rng, (16, 12), u.shape)
    shade += scene.contrast * (light[0] * nx + light[1] * ny + light[2] * (facing - 0.6))
    aside = np.abs(u)
    shade *= 1 - 0.16 * np.exp(-(((aside - person.eye_distance) / 0.22) ** 2) - ((v + 0.1) / 0.16) ** 2)  # eye sockets
    face = skin * shade
    face[1:] *= 1 - 0.10 * np.exp(-(((aside - 0.42) / 0.2) ** 2) - ((v - 0.32) / 0.2) ** 2)  # red cheeks
    if person.beard:
        stubble = np.clip((v - 0.22 + 0.35 * np.abs(nx) ** 3) * 4, 0, 0.75) * (1 + 0.25 * pores)
        face += stubble * (_planes(person.hair) * shade - face)
    outline = (1 - np.sqrt(radius)) * person.head_width
    canvas.fill(outline, face, window, soft=0.03)
    if person.hair_style != "bald":
        wave = 0.05 * _smooth_noise(rng, (5, 7), u.shape)
        hairline = -0.66 + (0.45 if person.hair_style == "short" else 0.6) * nx * nx + wave - v
        canvas.fill(np.minimum(hairline, outline + 0.06), _hair(person, shade * 0.95, rng), window, soft=0.06)


def _paint_eye(canvas: _Canvas, person: Identity, expression: Expression, side: int) -> None:
    size = person.eye_size
    skin, hair = np.array(person.skin), np.array(person.hair)
    window, du, dv = canvas.near(side * person.eye_distance, -0.12, 0.2 * size, 0.14 * size)
    height = size * (0.02 + 0.075 * expression.eyes_open)
    almond = (1 - np.sqrt((du / (0.155 * size)) ** 2 + (dv / height) ** 2)) * height
    canvas.fill(almond + 0.018, skin * 0.45, window, soft=0.02)
    canvas.fill(almond, np.array((0.93, 0.92, 0.90)) * (0.55 + 0.45 * skin.max()), window)
    look = np.float32(0.05 * expression.gaze)
    ball = np.sqrt((du - look) ** 2 + dv * dv)
    canvas.fill(np.minimum(0.078 * size - ball, almond), person.iris, window)
    canvas.fill(np.minimum(0.038 * size - ball, almond), (0.04, 0.04, 0.05), window)
    glint = np.sqrt((du - look + 0.03) ** 2 + (dv + 0.03) ** 2)
    canvas.fill(np.minimum(0.018 - glint, almond), (1.0, 1.0, 1.0), window)
    window, du, dv = canvas.near(side * person.eye_distance, -0.36, 0.24, 0.14)
    arch = dv + side * person.brow_slope * du + 1.6 * du * du
    brow = np.minimum(0.034 * person.brow_weight - np.abs(arch), 0.19 - np.abs(du))
    canvas.fill(brow, 0.75 * hair + 0.1 * skin, window, soft=0.03)


def _paint_nose(canvas, person, scene) -> None:
    length, width = 0.36 * person.nose_length, 0.10 * person.nose_width
    skin = np.array(person.skin)
    window, du, dv = canvas.near(0.0, length - 0.18, 0.25, 0.32)
    along = np.clip(1 - (dv / 0.3) ** 2, 0, 1)
    from_side = LIGHTS[scene.light][0]
    away = -1.0 if from_side > 0 else 1.0
    shadow = np.exp(-(((du - away * width) / 0.055) ** 2)) * along
    canvas.blend(shadow * (0.12 + 0.35 * abs(from_side)), skin * 0.62, window)
    ridge = np.exp(-((du / 0.04) ** 2)) * along
    canvas.blend(ridge * 0.28, np.minimum(skin * 1.25 + 0.05, 1), window)
    window, du, dv = canvas.near(0.0, length, 0.26, 0.14)
    under = np.exp(-((du / (1.5 * width)) ** 2) - ((dv - 0.05) / 0.045) ** 2)
    canvas.blend(under * 0.4, skin * 0.5, window)
    holes = 0.032 - np.sqrt(((np.abs(du) - 0.7 * width) * 0.8) ** 2 + (dv - 0.02) ** 2)
    canvas.fill(holes, skin * 0.32, window, soft=0.02)


def _paint_mouth(canvas: _Canvas, person: Identity, expression: Expression) -> None:
    width = person.mouth_width * (1 + 0.22 * expression.smile)
    window, du, dv = canvas.near(0.0, 0.60, 0.52, 0.32)
    across = np.clip(du / width, -1.3, 1.3) ** 2
    line = dv + 0.13 * expression.smile * (across - 0.4)  # line between the lips, with raised corners in a smile
    taper = np.clip(1 - across, 0, 1)
    gap = 0.10 * expression.mouth_open * taper
    skin = np.array(person.skin)
    lip = skin * (0.86, 0.60, 0.60) + (0.05, 0.0, 0.01)
    upper = np.minimum(line + gap + 0.055 * person.lips * taper, gap + 0.065 * person.lips * taper - line)
    ends = (1 - np.sqrt(across)) * width
    canvas.fill(np.minimum(upper, ends), lip, window, soft=0.025)
    shine = np.exp(-((du / (0.5 * width)) ** 2) - ((line - gap - 0.035) / 0.018) ** 2)
    canvas.blend(0.25 * shine, np.minimum(lip * 1.4, 1), window)
    slit = np.minimum(gap + 0.008 - np.abs(line), ends)
    canvas.fill(slit, (0.22, 0.08, 0.08), window, soft=0.01)
    if expression.mouth_open > 0.25:
        canvas.fill(np.minimum(slit - 0.012, -0.01 - line), (0.90, 0.88, 0.84), window)
    crease = np.exp(-(((np.abs(du) - 1.25 * width) / 0.03) ** 2) - ((dv + 0.12) / 0.14) ** 2)
    canvas.blend((0.08 + 0.22 * max(expression.smile, 0)) * crease, skin * 0.6, window)


def _paint_glasses(canvas: _Canvas, person: Identity) -> None:
    window, du, dv = canvas.near(0.0, -0.1, 0.85, 0.3)
    rings = 0.021 - np.abs(np.sqrt((np.abs(du) - person.eye_distance) ** 2 + (1.15 * dv) ** 2) - 0.235)
    bridge = np.minimum(0.018 - np.abs(dv + 0.05), person.eye_distance - 0.23 - np.abs(du))
    temples = np.minimum(
        0.018 - np.abs(dv + 0.02), np.minimum(np.abs(du) - person.eye_distance - 0.23, 0.8 - np.abs(du))
    )
    canvas.fill(np.maximum(np.maximum(rings, bridge), temples), (0.08, 0.07, 0.07), window)


def _smooth_noise(rng: np.random.Generator, bumps: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Return smooth noise of about unit spread with `bumps` rows and columns of bumps."""
    coarse = Image.fromarray(rng.standard_normal(bumps, np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))


def _planes(colour: Colour) -> np.ndarray:
    return np.asarray(colour, np.float32)[:, None, None]


def _blur(plane: np.ndarray, radius: float) -> np.ndarray:
    # Pillow cannot blur float pictures; reducing and enlarging is as smooth and as fast.
    side = max(4, round(_CANVAS_SIZE / (1 + radius)))
    small = Image.fromarray(np.ascontiguousarray(plane)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize((_CANVAS_SIZE, _CANVAS_SIZE), Image.Resampling.BICUBIC))


def _halve(plane: np.ndarray) -> np.ndarray:
    # Adding four strided views is several times faster than a mean over reshaped axes.
    even, odd = plane[..., ::2, :], plane[..., 1::2, :]
    return 0.25 * (even[..., ::2] + even[..., 1::2] + odd[..., ::2] + odd[..., 1::2])
