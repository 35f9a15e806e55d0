# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The types that all readers return.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

DEFAULT_FPS = Fraction(24)  # for frames without time stamps
_HIGHEST_FPS = 1000


class Frame(NamedTuple):
    """One frame of a video."""

    name: str  # without extension; result files use it
    image: np.ndarray  # uint8 (H, W, 3), BGR
    time: float  # seconds since the first frame
    file: str | None = None  # name with extension, if the frame is an image file


@dataclass
class Source:
    """Frames and their properties. ``frames`` can be read once; closing it ends threads and releases devices."""

    name: str
    frames: Iterator[Frame]
    count: int | None  # number of frames; None: unknown
    fps: Fraction  # mean rate
    is_image: bool = False  # a single image
    live: bool = False  # a camera: frames that are not read in time are lost
    key: str | None = None  # identifies the files and their state; None: the source cannot be read again

    def __iter__(self) -> Iterator[Frame]:
        return self.frames


def known_rate(fps: float | Fraction | None) -> Fraction:
    """Frames per second, or the default if a file or device reports an impossible value (0, -1, NaN, infinity)."""
    if fps is None or not math.isfinite(fps) or not 0 < fps <= _HIGHEST_FPS:
        return DEFAULT_FPS
    return Fraction(fps).limit_denominator(1001) or DEFAULT_FPS  # less than one frame in half an hour
