# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Geometric augmentations, constant over a clip or varying along a path.

Shape shorthand: T: frames of the clip.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ausm_d2.data.augmentation.plan import Augmentation, ClipPlan, scaling, translation
from ausm_d2.errors import UserError


class ResizeShortestEdge(Augmentation):
    """Scale so that the shorter side has one of ``sizes`` (drawn per clip) and the longer one at most ``max_size``."""

    def __init__(self, sizes: Sequence[int], max_size: int, sampling: str = "choice") -> None:
        """``sampling``: "choice": one of ``sizes``; "range": any size between the two. "..._by_clip" is the same."""
        self.sampling = sampling.removesuffix("_by_clip")
        if self.sampling not in ("choice", "range") or (self.sampling == "range" and len(sizes) != 2) or not sizes:
            raise UserError(f"INPUT.MIN_SIZE_TRAIN(_SAMPLING): cannot draw a size by {sampling!r} from {list(sizes)}")
        self.sizes = list(sizes)
        self.max_size = max_size

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        if self.sampling == "range":
            short = int(rng.integers(self.sizes[0], self.sizes[1] + 1))
        else:
            short = self.sizes[int(rng.integers(len(self.sizes)))]
        height, width = plan.size
        scale = min(short / min(height, width), self.max_size / max(height, width))
        new = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        if new != plan.size:
            plan.transform(scaling(new[1] / width, new[0] / height), new)


class RandomFlip(Augmentation):
    """Flip the whole clip horizontally (or vertically)."""

    def __init__(self, prob: float = 0.5, vertical: bool = False) -> None:
        self.prob = prob
        self.vertical = vertical

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        if rng.random() < self.prob:
            matrix = np.eye(3)
            axis = 1 if self.vertical else 0
            matrix[axis, axis], matrix[axis, 2] = -1.0, plan.size[0] if self.vertical else plan.size[1]
            plan.transform(matrix)


class RandomCrop(Augmentation):
    """Crop a window of constant size, which may slide over the clip in a straight line, by whole pixels.

    In VITA and GenVIS the window slides between two positions anywhere in the frame, with sorted random steps.
    """

    def __init__(self, kind: str, size: Sequence[float], drift: float = 0.0) -> None:
        """
        Args:
            kind: Detectron2's INPUT.CROP.TYPE: "absolute_range" (smallest, largest side in pixels), "absolute"
                (height, width), "relative" (of the height, of the width), "relative_range" (those up to 1).
            size: two numbers, as defined by ``kind``.
            drift: maximum shift of the window over the clip, relative to its size; the end position is uniform within.
        """
        if kind not in ("absolute_range", "absolute", "relative", "relative_range") or len(size) != 2:
            raise UserError(
                f"INPUT.CROP.TYPE: {kind!r} with SIZE {list(size)} is not one of Detectron2's kinds of crop"
            )
        self.kind = kind
        self.size = size
        self.drift = drift

    def _window(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        a, b = self.size
        if self.kind == "absolute_range":
            low, high = int(a), int(b)
            sides = [int(rng.integers(min(side, low), min(side, high) + 1)) for side in (height, width)]
            return sides[0], sides[1]
        if self.kind == "absolute":
            return min(height, int(a)), min(width, int(b))
        if self.kind == "relative_range":
            a, b = a + rng.random() * (1 - a), b + rng.random() * (1 - b)
        return max(1, int(height * a + 0.5)), max(1, int(width * b + 0.5))

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        window = self._window(*plan.size, rng)
        path = np.linspace(0.0, 1.0, plan.num_frames)
        starts = []
        for full, cut in zip(plan.size, window, strict=True):
            first, way = int(rng.integers(full - cut + 1)), self.drift * cut
            last = rng.uniform(max(first - way, 0), min(first + way, full - cut))
            starts.append(np.round(first + (last - first) * path))
        plan.transform(translation(-starts[1], -starts[0]), window)


class RandomRotation(Augmentation):
    """Rotate the frames about one point, by angles sorted over the clip in either direction (VITA, GenVIS)."""

    def __init__(self, degrees: float = 15.0, centre: tuple[float, float] = (0.4, 0.6)) -> None:
        """Angles in [-degrees, degrees]; relative position of the centre in this range. The frame size is kept."""
        self.degrees = degrees
        self.centre = centre

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        angles = np.sort(rng.uniform(-self.degrees, self.degrees, plan.num_frames))
        if rng.random() < 0.5:
            angles = angles[::-1]
        y, x = rng.uniform(*self.centre, size=2) * plan.size
        cos, sin = np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles))
        turn = np.zeros((plan.num_frames, 3, 3))
        turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1], turn[:, 2, 2] = cos, -sin, sin, cos, 1.0
        plan.transform(translation(x, y) @ turn @ translation(-x, -y))


class CropScalePath(Augmentation):
    """Pan and zoom: a window with the frame's aspect ratio moves and scales between two random placements."""

    def __init__(self, smallest: float = 0.6) -> None:
        """``smallest``: minimum side of the window, relative to the frame's."""
        self.smallest = smallest

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        path = np.linspace(0.0, 1.0, plan.num_frames)
        first, last = np.log(rng.uniform(self.smallest, 1.0, size=2))
        side = np.exp(first + (last - first) * path)
        height, width = plan.size
        (y0, x0), (y1, x1) = rng.random((2, 2))
        y = (y0 + (y1 - y0) * path) * (1 - side) * height
        x = (x0 + (x1 - x0) * path) * (1 - side) * width
        zoom = np.zeros((plan.num_frames, 3, 3))
        zoom[:, 0, 0] = zoom[:, 1, 1] = 1 / side
        zoom[:, 2, 2] = 1.0
        plan.transform(zoom @ translation(-x, -y))


class Shrink(Augmentation):
    """Shrink the frame inside its canvas, so that objects become small; the border is its blurred mirror image.

    The shrunk frame moves along a short straight path. Its scale is log-uniform.
    """

    def __init__(self, smallest: float) -> None:
        """``smallest``: minimum side of the shrunk frame, relative to the original."""
        if not 0 < smallest <= 1:
            raise UserError(f"INPUT.SHRINK.SMALLEST: {smallest} found; above 0, up to 1 expected")
        self.smallest = smallest

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        scale = np.exp(rng.uniform(np.log(self.smallest), 0))
        path = np.linspace(0.0, 1.0, plan.num_frames)[:, None]
        start = rng.random(2)
        places = (1 - scale) * (start + 0.5 * rng.random() * (rng.random(2) - start) * path) * plan.size  # (T, 2)
        plan.transform(translation(places[:, 1], places[:, 0]) @ scaling(scale, scale))
        plan.surroundings = rng.uniform(2.0, 8.0)


class LargeScaleJitter(Augmentation):
    """Scale to fit a square of ``size`` times a factor drawn per clip, then crop or pad to that square.

    Padding is at the right and bottom. Augmentations relative to the image size come before it (VITA: flip, rotation,
    scale, crop); after it they would be relative to the square.
    """

    def __init__(self, size: int = 1024, min_scale: float = 0.1, max_scale: float = 2.0) -> None:
        self.size = size
        self.min_scale = min_scale
        self.max_scale = max_scale

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        scale = rng.uniform(self.min_scale, self.max_scale) * self.size / max(plan.size)
        new = [max(1, int(side * scale + 0.5)) for side in plan.size]
        y, x = (int(rng.integers(max(side - self.size, 0) + 1)) for side in new)
        resize = scaling(new[1] / plan.size[1], new[0] / plan.size[0])
        plan.transform(translation(-x, -y) @ resize, (self.size, self.size))


class SoftWarp(Augmentation):
    """Deform the frames smoothly, each part oscillating on its own path, as soft objects move.

    It is applied after all matrices, whatever its place in the chain.
    """

    pasted_too = True

    def __init__(self, largest: float = 0.05, cells: tuple[int, int] = (3, 7)) -> None:
        """
        Args:
            largest: largest standard deviation of a grid point's displacement, relative to the frame's sides.
            cells: smallest and largest number of grid points along a side.
        """
        self.largest = largest
        self.cells = cells

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        rows, columns = rng.integers(self.cells[0], self.cells[1] + 1, size=2)
        # Finer grids move less, so that the warp does not fold.
        reach = rng.random() * self.largest * self.cells[0] / max(rows, columns)
        ways, phases, speeds = rng.normal(size=(rows, columns, 2)), *rng.random((2, rows, columns, 1))
        path = np.linspace(0.0, 1.0, plan.num_frames)[:, None, None, None]
        swing = np.sin(2 * np.pi * (phases + speeds * path)) - np.sin(2 * np.pi * phases)
        plan.warp((reach * ways * swing).astype(np.float32))
