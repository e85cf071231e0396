"""Parameters of drawn persons, expressions, poses and scenes, and their captions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SKIN_TONES = {"pale": (0.95, 0.81, 0.73), "light": (0.89, 0.71, 0.59), "tan": (0.78, 0.58, 0.44),
              "brown": (0.58, 0.39, 0.28), "dark": (0.38, 0.25, 0.19)}  # fmt: skip
HAIR_COLOURS = {"black": (0.09, 0.08, 0.08), "brown": (0.32, 0.20, 0.12), "blond": (0.82, 0.68, 0.40),
                "red": (0.62, 0.25, 0.10), "grey": (0.62, 0.62, 0.62)}  # fmt: skip
HAIR_STYLES = ("short", "long", "curly", "bald")
COLOURS = {"green": (0.25, 0.52, 0.27), "blue": (0.25, 0.40, 0.70), "grey": (0.52, 0.52, 0.54),
           "white": (0.88, 0.88, 0.86), "black": (0.10, 0.10, 0.12), "red": (0.66, 0.20, 0.18),
           "yellow": (0.85, 0.72, 0.28), "purple": (0.50, 0.28, 0.60), "brown": (0.45, 0.32, 0.22),
           "pink": (0.88, 0.55, 0.65)}  # fmt: skip
TEXTURES = ("plain", "gradient", "leafy", "striped")
LIGHTS = {"left": (-0.75, -0.3, 0.6), "right": (0.75, -0.3, 0.6), "above": (0.0, -0.8, 0.6), "front": (0.0, -0.1, 1.0)}


@dataclass(frozen=True)
class Identity:
    """Parameters of a person that are constant over all images; lengths in head half heights, colours in [0, 1]."""

    skin_tone: str
    skin: tuple[float, ...]
    hair_colour: str
    hair: tuple[float, ...]
    hair_style: str
    iris: tuple[float, ...]
    shirt: tuple[float, ...]
    glasses: bool
    beard: bool
    head_width: float
    jaw: float
    eye_distance: float
    eye_size: float
    brow_weight: float
    brow_slope: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lips: float


@dataclass(frozen=True)
class Expression:
    """Smile in [-0.5, 1], mouth opening and eye opening in [0, 1], gaze in [-1, 1] (1 is the picture's right)."""

    smile: float
    mouth_open: float
    eyes_open: float
    gaze: float


@dataclass(frozen=True)
class Pose:
    """Turn of the head in [-1, 1], roll in radians, head half height and shift in half picture widths."""

    yaw: float
    roll: float
    zoom: float
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """Background and light; `angle` in radians places stripes and gradient, `depth_blur` is in canvas pixels."""

    background: str
    colour: tuple[float, ...]
    texture: str
    angle: float
    light: str
    contrast: float
    depth_blur: float


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draw a person at random."""
    tone, colour = str(rng.choice(list(SKIN_TONES))), str(rng.choice(list(HAIR_COLOURS)))
    return Identity(
        skin_tone=tone,
        skin=_vary(SKIN_TONES[tone], 0.03, rng),
        hair_colour=colour,
        hair=_vary(HAIR_COLOURS[colour], 0.03, rng),
        hair_style=str(rng.choice(HAIR_STYLES, p=(0.4, 0.3, 0.2, 0.1))),
        iris=_vary(((0.25, 0.16, 0.09), (0.25, 0.42, 0.60), (0.27, 0.42, 0.25))[rng.integers(3)], 0.03, rng),
        shirt=_vary(COLOURS[str(rng.choice(list(COLOURS)))], 0.05, rng),
        glasses=bool(rng.random() < 0.25),
        beard=bool(rng.random() < 0.25),
        head_width=rng.uniform(0.70, 0.84),
        jaw=rng.uniform(0.08, 0.32),
        eye_distance=rng.uniform(0.29, 0.36),
        eye_size=rng.uniform(0.85, 1.2),
        brow_weight=rng.uniform(0.6, 1.4),
        brow_slope=rng.uniform(-0.2, 0.2),
        nose_length=rng.uniform(0.85, 1.15),
        nose_width=rng.uniform(0.8, 1.3),
        mouth_width=rng.uniform(0.24, 0.34),
        lips=rng.uniform(0.7, 1.4),
    )


def draw_expression(mood: float, rng: np.random.Generator) -> Expression:
    """Draw an expression whose smile is about `mood`, in [-0.5, 1]."""
    return Expression(
        smile=float(np.clip(mood + rng.normal(0, 0.15), -0.5, 1)),
        mouth_open=max(0.0, rng.uniform(-0.6, 1)),
        eyes_open=rng.uniform(0.55, 1),
        gaze=rng.uniform(-1, 1),
    )


def dress(stranger: Identity, person: Identity) -> Identity:
    """Match a donor to the target for a swap: similar skin, hair, beard and glasses."""
    alike = ("skin_tone", "skin", "hair_colour", "hair", "hair_style", "beard", "glasses")
    return replace(stranger, **{name: getattr(person, name) for name in alike})


def describe(person: Identity, face: Expression, scene: Scene) -> list[str]:
    """Return at most seven caption phrases for a picture; none reveals whether it is genuine."""
    hair = "bald" if person.hair_style == "bald" else f"{person.hair_style} {person.hair_colour} hair"
    parts = [
        f"{person.skin_tone} skin",
        hair,
        f"blurred {scene.background} background" if scene.depth_blur > 4 else f"{scene.background} background",
        "light from front" if scene.light == "front" else f"light from {scene.light}",
        "smiling" if face.smile > 0.35 else "frowning" if face.smile < -0.1 else "calm face",
    ]
    return parts + ["glasses"] * person.glasses + ["beard"] * person.beard


def _vary(colour: tuple[float, ...], spread: float, rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(float(c) for c in np.clip(np.array(colour) * rng.normal(1, 0.06) + rng.normal(0, spread, 3), 0.02, 1))
