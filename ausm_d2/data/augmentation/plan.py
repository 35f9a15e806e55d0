# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The plan of a clip's augmentation: geometry and colours of every frame, collected before anything is rendered.

Shape shorthand:
    T: frames of the clip
    H, W: size of a stored frame in pixels
    h, w: size of the augmented frame in pixels

Coordinates are continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_IDENTITY = np.eye(3)


@dataclass
class ClipPlan:
    """What to do with the frames of a clip."""

    matrices: np.ndarray  # (T, 3, 3) float64, homogeneous, from stored to augmented coordinates (x, y)
    size: tuple[int, int]  # (h, w)
    colours: np.ndarray | None = None  # (T, 3, 4) float64: augmented RGB = [:, :3] @ RGB + [:, 3]; None: unchanged
    # (T, rows, columns, 2) float32, applied after the matrices: sampling offsets (x, y), relative to the frame's sides,
    # on a coarse grid that is interpolated. None: no warp.
    warps: np.ndarray | None = None
    # What lies outside of the stored frame: its mirror image, blurred by so many pixels; None: one colour.
    surroundings: float | None = None

    @classmethod
    def identity(cls, num_frames: int, size: tuple[int, int]) -> ClipPlan:
        """The plan that leaves T frames of ``size`` (H, W) as they are."""
        return cls(np.broadcast_to(np.eye(3), (num_frames, 3, 3)), size)

    def __post_init__(self) -> None:
        self._stored_size = self.size
        self._sources: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # cached: frame and masks need them

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.matrices)

    def moves(self, t: int) -> bool:
        """Whether the geometry of frame t changes at all."""
        return self.size != self._stored_size or not np.array_equal(self.matrices[t], _IDENTITY)

    def sources(self, t: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Where the pixels of frame t come from after its matrix: float32 columns and rows (h, w), or None."""
        if self.warps is None:
            return None
        if t in self._sources:
            return self._sources[t]
        height, width = self.size
        away = cv2.resize(self.warps[t], (width, height), interpolation=cv2.INTER_CUBIC)
        columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        self._sources[t] = columns + away[..., 0] * width, rows + away[..., 1] * height
        return self._sources[t]

    def transform(self, matrix: np.ndarray, size: tuple[int, int] | None = None) -> None:
        """Append a matrix (3, 3) or (T, 3, 3); ``size`` (h, w) is the frame size after it, if it changes."""
        self.matrices = matrix @ self.matrices
        self.size = size or self.size
        self._sources.clear()

    def warp(self, warps: np.ndarray) -> None:
        """Set ``warps`` (T, rows, columns, 2)."""
        self.warps = warps
        self._sources.clear()

    def recolour(self, linear: np.ndarray, offset: np.ndarray) -> None:
        """Append RGB -> linear @ RGB + offset, with (T, 3, 3) and (T, 3)."""
        if self.colours is None:
            self.colours = np.concatenate([linear, offset[..., None]], axis=-1)
            return
        self.colours = linear @ self.colours
        self.colours[..., 3] += offset


class Augmentation:
    """Changes a plan in place."""

    pasted_too = False  # also applied, with its own random draw, to pasted objects (copy-paste)

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        raise NotImplementedError


def scaling(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


def translation(x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
    """(3, 3) for scalars, (T, 3, 3) for (T,) arrays."""
    x, y = np.broadcast_arrays(x, y)
    matrix = np.broadcast_to(np.eye(3), (*x.shape, 3, 3)).copy()
    matrix[..., 0, 2], matrix[..., 1, 2] = x, y
    return matrix
