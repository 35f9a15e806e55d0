# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Textures of procedural videos: colours, patterns, sprites, noise.

Shape shorthand:
    S, R: height and width of a texture in pixels
"""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np

from ausm_d2.data.synthvis.scene import CLASSES, RING_HOLE, Layer, outline


def rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) RGB in [0, 255]."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return 255 * value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


def blotches(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """(S, R) smooth noise in [0, 1] with structures of about ``cell`` pixels."""
    grid = rng.random((int(shape[0] / cell) + 2, int(shape[1] / cell) + 2), dtype=np.float32)
    return cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def pattern(rng: np.random.Generator, shape: tuple[int, int], period: float) -> np.ndarray:
    """(S, R) float32 in [0, 1]: stripes, checks, dots, blotches or a plain surface."""
    kind = int(rng.integers(5))
    if kind == 4:
        return np.full(shape, 0.3, np.float32)
    if kind == 3:
        return blotches(rng, shape, 0.7 * period)
    turn, phase = rng.uniform(0, math.pi, size=2)
    y, x = np.ogrid[: shape[0], : shape[1]]
    step = 2 * math.pi / period
    u = np.sin(((x * math.cos(turn) + y * math.sin(turn)) * step + phase).astype(np.float32))
    if kind == 0:
        return np.clip(0.5 + 1.5 * u, 0, 1)
    v = np.sin(((y * math.cos(turn) - x * math.sin(turn)) * step + phase).astype(np.float32))
    return np.clip(0.5 + 3 * u * v, 0, 1) if kind == 1 else np.clip(2 * (u + v) - 1, 0, 1)


def mix(field: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(S, R, 3) float32: from ``first`` where ``field`` (S, R) is 0 to ``second`` where it is 1."""
    return first.astype(np.float32) + field[..., None] * (second - first).astype(np.float32)


def sprite_of(layer: Layer, colour: np.ndarray) -> np.ndarray:
    """(S, R, 4) uint8, premultiplied: ``colour`` (S, R, 3) cut to the layer's shape."""
    rows, columns = colour.shape[:2]
    fine, shift = 4, 4
    canvas = np.zeros((rows * fine, columns * fine), np.uint8)
    half = np.array(layer.half)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float) if layer.shape < 0 else outline(layer.shape)[0]

    def place(points: np.ndarray) -> np.ndarray:
        where = (points * half + np.array([columns, rows]) / 2) * fine - 0.5
        return np.round(where * 2**shift).astype(np.int32)

    cv2.fillPoly(canvas, [place(corners)], 255, shift=shift)
    if layer.shape >= 0 and CLASSES[layer.shape] == "ring":
        cv2.fillPoly(canvas, [place(corners * RING_HOLE)], 0, shift=shift)
    alpha = cv2.resize(canvas, (columns, rows), interpolation=cv2.INTER_AREA)
    cut = np.clip(colour, 0, 255) * (alpha[..., None] * np.float32(1 / 255))
    return np.dstack([np.round(cut).astype(np.uint8), alpha])


@cache
def noise_table() -> np.ndarray:
    """(256, 320, 3) uint8 Gaussian noise around 128, standard deviation 32. Frames use random windows of it."""
    noise = np.random.default_rng(0).normal(128, 32, size=(256, 320, 3))
    return np.clip(np.round(noise), 0, 255).astype(np.uint8)
