"""A frame of a video or picture, and the report of reading a file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video; a photograph has one frame.

    Attributes:
        number: Its number among the displayed frames, from 0.
        seconds: Time since the first frame; None if only the order of frames is known.
        pixels: Upright RGB of square pixels, shape `(height, width, 3)`, type uint8.
    """

    number: int
    seconds: float | None
    pixels: np.ndarray


@dataclass
class ReadReport:
    """Errors and warnings, collected while a file is read.

    Attributes:
        notes: Messages for the user.
        lost: Numbers of requested frames that are damaged.
    """

    notes: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
