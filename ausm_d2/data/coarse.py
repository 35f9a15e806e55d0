# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Simulates boxes, clicks and scribbles from true masks, as prompts of training clips.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import cv2
import numpy as np

from ausm_d2.masks.drawn import box_mask, click_radius, clicks_mask, scribble_mask

_KINDS = ("box", "click", "clicks", "scribble")
_SHARES = (0.35, 0.3, 0.2, 0.15)


def coarse_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate what a user draws to mark an object.

    A box around it, half of the time inexact; one to three discs on it; or a line through two or three points on it.

    Args:
        mask: bool (H, W), not empty.

    Returns:
        bool (H, W), not empty.
    """
    kind = rng.choice(_KINDS, p=_SHARES)
    if kind == "box":
        return _box(mask, rng)
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    size = (mask.shape[0], mask.shape[1])
    if kind == "scribble":
        points = _points(depth, int(rng.integers(2, 4)), rng)
        return scribble_mask(size, points, 2 * click_radius(size) * rng.uniform(0.3, 1.0))
    count = 1 if kind == "click" else int(rng.integers(2, 4))
    return clicks_mask(size, _points(depth, count, rng), click_radius(size) * rng.uniform(0.7, 1.4))


def _box(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
    if rng.random() < 0.5:
        sides = np.tile(box[2:] - box[:2], 2)
        box += rng.uniform(-0.06, 0.06, 4) * sides
    return box_mask((mask.shape[0], mask.shape[1]), np.clip(box, 0, [*mask.shape[::-1], *mask.shape[::-1]]).tolist())


def _points(depth: np.ndarray, count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """(x, y) of random pixels of the object, weighted by their depth; half of the time the first is the deepest one.

    Args:
        depth: (H, W), distance of each pixel of the object to its boundary; 0 outside.
    """
    rows, columns = np.nonzero(depth)
    weight = depth[rows, columns].astype(np.float64)
    chosen = rng.choice(len(rows), count, p=weight / weight.sum())
    if rng.random() < 0.5:
        chosen[0] = weight.argmax()
    return [(columns[i] + 0.5, rows[i] + 0.5) for i in chosen]
