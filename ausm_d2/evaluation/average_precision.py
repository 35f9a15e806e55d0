# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Average precision by COCO's rules.

Computes the same as ``pycocotools.cocoeval.COCOeval`` from precomputed overlaps. A group is the set of detections and
true objects of one category in one video or image.

Shape shorthand:
    D, G: detections, by descending score, and true objects of a group
    S: size ranges: all, small, medium, large
    K: IoU thresholds
    R: recall levels
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10")

MOST_DETECTIONS = 100  # per group, by score
_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # (K,)
_RECALLS = np.linspace(0, 1, 101)  # (R,)
_K75 = 5  # index of threshold 0.75


@dataclass
class Detections:
    """The detections of one group and their matches."""

    scores: np.ndarray  # (D,), descending
    matched: np.ndarray  # bool (S, K, D): matched with a true object
    ignored: np.ndarray  # bool (S, K, D): neither true nor false positive
    num_true: np.ndarray  # int (S,): true objects that are not ignored


def match(
    scores: np.ndarray,
    overlaps: np.ndarray,
    areas: np.ndarray,
    true_areas: np.ndarray,
    crowds: np.ndarray,
    size_limits: Sequence[float],
) -> Detections:
    """Match each detection, by descending score, with the free true object that it overlaps most.

    Crowds and objects outside the size range are ignored, as are detections matched with them; they are matched only if
    no other object is free. A crowd matches any number of detections. Unmatched detections outside the size range are
    ignored too. Ties go to the last object.

    Args:
        scores: (D,), descending.
        overlaps: (D, G), 0 to 1; values below the smallest threshold need not be exact.
        areas: (D,), pixels.
        true_areas: (G,), pixels.
        crowds: bool (G,).
        size_limits: areas in pixels at which small ends and large begins.
    """
    small, large = size_limits
    low, high = np.array([0, 0, small, large])[:, None], np.array([1e10, small, large, 1e10])[:, None]  # (S, 1)
    ignored_objects = crowds | (true_areas < low) | (true_areas > high)  # (S, G)
    matched = np.zeros((len(low), len(_THRESHOLDS), len(scores)), bool)
    ignored = matched.copy()
    enough = overlaps >= np.minimum(_THRESHOLDS, 1 - 1e-10)[:, None, None]  # (K, D, G)
    free = np.ones((len(low), len(_THRESHOLDS), len(crowds)), bool)
    for detection in np.flatnonzero(enough[0].any(axis=1)).tolist():
        # Rank objects by overlap, ignored ones after all others.
        order = np.argsort(overlaps[detection], kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = range(1, len(order) + 1)
        preference = np.where(ignored_objects, rank, rank + len(rank))[:, None] * (enough[:, detection] & free)
        taken = preference.argmax(axis=2)[:, :, None]  # (S, K, 1)
        found = np.take_along_axis(preference, taken, axis=2) > 0
        matched[:, :, detection] = found[:, :, 0]
        ignored[:, :, detection] = (found & np.take_along_axis(ignored_objects[:, None], taken, axis=2))[:, :, 0]
        np.put_along_axis(free, taken, np.take_along_axis(free, taken, axis=2) & (~found | crowds[taken]), axis=2)
    ignored |= ~matched & ((areas < low) | (areas > high))[:, None]
    return Detections(scores, matched, ignored, (~ignored_objects).sum(axis=1))


def distinct_names(names: Mapping[int, str]) -> list[str]:
    """Class names in the order of ``names``; duplicate names get their id appended."""
    counts = Counter(names.values())
    return [name if counts[name] == 1 else f"{name} (id {class_id})" for class_id, name in names.items()]


def summarise(groups: Iterable[Sequence[Detections]], class_names: Sequence[str]) -> dict[str, Any]:
    """``METRICS`` and ``per_category`` (AP by name), in percent; ``None`` without true objects.

    Args:
        groups: for each category, the groups of all videos. Ties of scores are broken by their order.
        class_names: of each category, unique.
    """
    curves = [_curve(of_category) for of_category in groups]
    precision = np.array([curve[0] for curve in curves]).reshape(-1, 4, len(_THRESHOLDS), len(_RECALLS))
    recall = np.array([curve[1] for curve in curves]).reshape(-1, 2, len(_THRESHOLDS))
    everything = precision[:, 0]  # all sizes: (categories, K, R)
    parts = everything, everything[:, 0], everything[:, _K75], *(precision[:, size] for size in (1, 2, 3))
    values = [_mean(part) for part in (*parts, recall[:, 0], recall[:, 1])]
    per_category = {name: _mean(of_one) for name, of_one in zip(class_names, everything, strict=True)}
    return {**dict(zip(METRICS, values, strict=True)), "per_category": per_category}


def _mean(values: np.ndarray) -> float | None:
    """Mean over values that are not NaN, in percent."""
    values = values[~np.isnan(values)]
    return 100 * float(values.mean()) if values.size else None


def _curve(groups: Sequence[Detections]) -> tuple[np.ndarray, np.ndarray]:
    """Precision (S, K, R), and recall (2, K) over all sizes with 1 and 10 detections per group; NaN without objects."""
    precision = np.full((4, len(_THRESHOLDS), len(_RECALLS)), np.nan)
    recall = np.full((2, len(_THRESHOLDS)), np.nan)
    num_true = sum((group.num_true for group in groups), np.zeros(4, np.int64))
    if not num_true[0]:
        return precision, recall
    for row, most in enumerate((1, 10)):
        found = [(group.matched & ~group.ignored)[0, :, :most].sum(axis=1) for group in groups]
        recall[row] = np.sum(found, axis=0) / num_true[0]
    order = np.argsort(-np.concatenate([group.scores for group in groups]), kind="stable")
    matched = np.concatenate([group.matched for group in groups], axis=2)[:, :, order]
    counts = ~np.concatenate([group.ignored for group in groups], axis=2)[:, :, order]
    right, wrong = (np.cumsum(kind & counts, axis=2, dtype=float) for kind in (matched, ~matched))
    best = right / (right + wrong + np.spacing(1))
    best = np.maximum.accumulate(best[:, :, ::-1], axis=2)[:, :, ::-1]  # maximum over this and higher recalls
    best = np.concatenate([best, np.zeros((*best.shape[:2], 1))], axis=2)  # recall not reached: 0
    for size in np.flatnonzero(num_true).tolist():
        for level, reached in enumerate(right[size] / num_true[size]):
            precision[size, level] = best[size, level, np.searchsorted(reached, _RECALLS)]
    return precision, recall
