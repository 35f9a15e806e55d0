# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Coarse masks from boxes, clicks and scribbles. The model refines them when it sees the frame again (paper, Sec. 5;
docs/deviations.md, 17). Used in training and inference alike.

Shape shorthand:
    H, W: frame size in pixels
    P: points

Coordinates are continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ausm_d2.errors import UserError

CLICK_RADIUS = 12.0  # pixels, for a frame whose shorter side has 480 pixels
SCRIBBLE_WIDTH = 12.0  # likewise


def box_mask(size: tuple[int, int], box: Sequence[float]) -> np.ndarray:
    """A filled box.

    Args:
        size: (H, W).
        box: x0, y0, x1, y1.

    Returns:
        bool (H, W): the pixels whose centre is in the box; if there are none, the pixel at the centre of the box.

    Raises:
        UserError: if the box is invalid or outside the frame.
    """
    height, width = size
    if len(box) != 4 or not np.isfinite(box).all() or box[0] > box[2] or box[1] > box[3]:
        raise UserError(f"a box is x0, y0, x1, y1 with x0 <= x1 and y0 <= y1; {list(box)} found")
    x0, y0, x1, y1 = box
    if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
        raise UserError(f"the box {list(box)} lies outside of the frame of {width}x{height} pixels")
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    inside = [_in_range(rows, y0, y1), _in_range(columns, x0, x1)]
    return inside[0][:, None] & inside[1]


def _in_range(middles: np.ndarray, low: float, high: float) -> np.ndarray:
    inside = (middles >= low) & (middles <= high)
    if not inside.any():
        inside[int(np.clip((low + high) / 2, 0, len(middles) - 1))] = True
    return inside


def click_radius(size: tuple[int, int]) -> float:
    """Pixels: :data:`CLICK_RADIUS` in a frame of ``size`` (H, W)."""
    return CLICK_RADIUS * min(size) / 480


def clicks_mask(size: tuple[int, int], points: Sequence[Sequence[float]], radius: float | None = None) -> np.ndarray:
    """A disc around every point.

    Args:
        size: (H, W).
        points: P times x, y.
        radius: pixels; None: :func:`click_radius`.

    Returns:
        bool (H, W). A disc contains at least the pixel of its point.

    Raises:
        UserError: if there is no point, or one is outside the frame.
    """
    radius = click_radius(size) if radius is None else radius
    rows, columns = np.arange(size[0])[:, None] + 0.5, np.arange(size[1]) + 0.5
    mask = np.zeros(size, bool)
    for x, y in _checked(size, points):
        mask |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
        mask[min(int(y), size[0] - 1), min(int(x), size[1] - 1)] = True
    return mask


def scribble_mask(size: tuple[int, int], points: Sequence[Sequence[float]], width: float | None = None) -> np.ndarray:
    """A line through the points, with round ends.

    Args:
        size: (H, W).
        points: P times x, y, in their order; one point is a dot.
        width: pixels; None: :data:`SCRIBBLE_WIDTH`, scaled to the frame.

    Returns:
        bool (H, W).

    Raises:
        UserError: if there is no point, or one is outside the frame.
    """
    radius = (SCRIBBLE_WIDTH * min(size) / 480 if width is None else width) / 2
    line = np.asarray(_checked(size, points))
    mask = clicks_mask(size, points[:1], radius)
    for start, end in pairwise(line):
        (left, top), (right, bottom) = np.minimum(start, end) - radius, np.maximum(start, end) + radius
        part = (slice(max(int(top), 0), int(bottom) + 1), slice(max(int(left), 0), int(right) + 1))
        near = mask[part]
        pixels = np.stack(np.meshgrid(*(np.arange(n) for n in near.shape[::-1])), axis=-1) + 0.5
        pixels += (part[1].start, part[0].start)
        way = end - start
        along = ((pixels - start) @ way / max(way @ way, 1e-12)).clip(0, 1)[..., None]
        near |= ((pixels - start - along * way) ** 2).sum(axis=-1) <= radius**2
    return mask


def _checked(size: tuple[int, int], points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    checked = []
    for point in points:
        if len(point) != 2 or not (0 <= point[0] <= size[1] and 0 <= point[1] <= size[0]):
            raise UserError(f"a point is x, y in the frame of {size[1]}x{size[0]} pixels; {list(point)} found")
        checked.append((float(point[0]), float(point[1])))
    if not checked:
        raise UserError("no point found; one at least expected")
    return checked
