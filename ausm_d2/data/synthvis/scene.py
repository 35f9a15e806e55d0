# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Constants and types of procedural videos: classes, layers, camera, and the objects of a video.

Shape shorthand:
    T: frames of the video
    P: corners of a polygon
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import accumulate

import numpy as np

SPLITS = {"train": (0, 20000), "val": (1, 160)}  # seed and number of videos
NUM_FRAMES = 18
HEIGHT, WIDTH = 96, 160
CLASSES = ("disc", "square", "triangle", "star", "ring", "cross")
CLASS_COLORS = ((230, 80, 60), (70, 140, 230), (90, 190, 80), (240, 200, 50), (170, 90, 210), (60, 200, 200))
MIN_VISIBLE = 12  # pixels; an object with fewer visible pixels is hidden
MIN_PART = 0.1  # of an object's area at scale 1; an object with a smaller visible part is hidden

RING_HOLE = 0.52  # inner over outer radius


@dataclass(frozen=True)
class Spec:
    """Determines the content of a video, together with its index."""

    seed: int
    num_frames: int = NUM_FRAMES


@dataclass(eq=False)
class Layer:
    """One sprite and its motion in the frame, camera motion included. Arrays are indexed by frame (T)."""

    instance_id: int  # 0: an occluder, which has no label
    shape: int  # index into CLASSES; -1: a rectangle
    least: float  # visible pixels, below which the layer is not drawn
    half: tuple[float, float]  # half width and half height at scale 1, pixels
    stretch: float  # factor on the width; the height is divided by it
    centre: np.ndarray  # (T, 2) x, y in pixels
    scale: np.ndarray
    angle: np.ndarray  # radians
    velocity: np.ndarray = field(init=False)  # (T, 2) pixels per frame


@dataclass
class Camera:
    """Camera motion. Zoom and angle apply to background and objects, pan to the background only."""

    pan: np.ndarray  # (T, 2) pixels
    zoom: np.ndarray  # (T,) >= 1, so that objects outside of the frame stay outside
    angle: np.ndarray  # (T,) radians


def generator(spec: Spec, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([spec.seed, index, purpose])


def _stratum(spec: Spec, index: int, dimension: int) -> float:
    """A number in [0, 1) that covers the interval evenly over consecutive indices (additive recurrence), so that
    any few dozen videos of any seed have nearly the same statistics."""
    step = (0.6180339887498949, 0.4142135623730951, 0.7320508075688772, 0.2360679774997898)[dimension]
    return (0.5 + spec.seed * 0.7548776662466927 + dimension * 0.31 + (index + 1) * step) % 1.0


@dataclass(frozen=True)
class Cast:
    """The objects of a video: their classes, and the indices of special ones."""

    classes: tuple[int, ...]
    small: frozenset[int]
    hidden: frozenset[int]  # disappear for some frames and come back
    late: frozenset[int]  # appear after the first frames


def _pick(quantile: float, shares: Sequence[float]) -> int:
    """Index of the interval that ``quantile`` falls into. ``shares``: lengths of the intervals, which sum to 1."""
    return bisect_right([*accumulate(shares[:-1])], quantile)


@lru_cache(maxsize=32768)  # all records of a data set are listed several times in a process
def cast_of(spec: Spec, index: int) -> Cast:
    rng = generator(spec, index, 0)
    count = 2 + _pick(_stratum(spec, index, 0), (0.15, 0.42, 0.28, 0.12, 0.03))
    order = [int(i) for i in rng.permutation(count)]
    hidden = _pick(_stratum(spec, index, 1), (0.20, 0.64, 0.16))
    late = _pick(_stratum(spec, index, 2), (0.50, 0.50))
    small = _pick(_stratum(spec, index, 3), (0.44, 0.50, 0.06))
    return Cast(
        classes=tuple(int(c) for c in rng.integers(len(CLASSES), size=count)),
        small=frozenset(int(i) for i in rng.permutation(count)[:small]),
        hidden=frozenset(order[:hidden]),
        late=frozenset(order[::-1][: min(late, count - hidden)]),
    )


@cache
def outline(shape: int) -> tuple[np.ndarray, float]:
    """Polygon (P, 2) of a class inside the unit circle, and the area of the class (a ring without its hole)."""
    name = CLASSES[shape]
    if name == "cross":
        arm = 0.34
        reach = math.sqrt(1 - arm * arm)
        end = np.array([(arm, arm), (arm, reach), (-arm, reach)])  # of one arm; the others are turned by 90 degrees
        points = np.concatenate([end, end[:, ::-1] * (-1, 1), -end, end[:, ::-1] * (1, -1)])
    else:
        corners = {"disc": 40, "ring": 40, "square": 4, "triangle": 3, "star": 10}[name]
        radius = np.where(np.arange(corners) % 2, 0.45, 1.0) if name == "star" else np.ones(corners)
        turn = np.arange(corners) * (2 * math.pi / corners) - math.pi / 2
        points = np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)
    x, y = points.T
    area = 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
    return points, area * (1 - RING_HOLE**2) if name == "ring" else area
