# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""J and F of single objects, computed by the package vos-benchmark.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from vos_benchmark.evaluator import Evaluator


class ObjectScore(NamedTuple):
    """J and F of one object, percent."""

    j: float
    f: float


@dataclass
class VideoScore:
    """The scores of one video, by object id, without objects that are never visible after their prompt."""

    name: str
    objects: dict[int, ObjectScore]


class ObjectEvaluator:
    """vos-benchmark's ``Evaluator`` for one object.

    It receives the crop around both masks, with the boundary tolerance of the whole frame: the same scores, many times
    faster for small objects.
    """

    _tolerance = 0.008  # relative to the frame's diagonal, as in vos-benchmark and DAVIS

    def __init__(self) -> None:
        self._evaluator = Evaluator()

    def feed(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Add one frame: two bool masks (H, W)."""
        radius = np.ceil(self._tolerance * np.linalg.norm(truth.shape))
        box = _box_around(predicted | truth)
        predicted, truth = predicted[box], truth[box]
        # Half a pixel less, so that the evaluator's ceil() returns this radius.
        self._evaluator.boundary = (radius - 0.5) / np.linalg.norm(truth.shape)
        self._evaluator.feed_frame(predicted.astype(np.uint8), truth.astype(np.uint8))

    def score(self) -> ObjectScore | None:
        """``None`` if the ground truth never shows the object."""
        j, f = self._evaluator.conclude()
        return ObjectScore(float(j[1]), float(f[1])) if j else None


def _box_around(mask: np.ndarray) -> tuple[slice, slice]:
    """The bounding box with a margin of one pixel: boundary pixels lie up and left of a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return slice(0, 1), slice(0, 1)
    return slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)


def conclude(name: str, evaluators: Mapping[int, ObjectEvaluator]) -> VideoScore:
    """The scores of a video. Objects that the ground truth never showed are left out."""
    scores = {object_id: evaluator.score() for object_id, evaluator in sorted(evaluators.items())}
    return VideoScore(name, {object_id: score for object_id, score in scores.items() if score is not None})
