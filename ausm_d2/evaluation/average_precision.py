# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Average precision by COCO's rules: detections are matched with true objects, and counted by falling score.

What ``pycocotools.cocoeval.COCOeval`` computes, for groups of detections whose overlaps are known; a group is what may
match: one category in one video or image.

Shape shorthand:
    D, G: detections, by falling score, and true objects of a group
    S: ranges of size: all, small, medium, large
    K: thresholds of overlap
    R: levels of recall
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10")

MOST_DETECTIONS = 100  # of a group, those of highest score; others do not count
_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # (K,)
_RECALLS = np.linspace(0, 1, 101)  # (R,)
_K75 = 5  # the place of 0.75


@dataclass
class Detections:
    """The detections of one group and their matches."""

    scores: np.ndarray  # (D,), falling
    matched: np.ndarray  # bool (S, K, D): with a true object
    ignored: np.ndarray  # bool (S, K, D): neither right nor wrong
    num_true: np.ndarray  # int (S,): true objects that count


def match(
    scores: np.ndarray,
    overlaps: np.ndarray,
    areas: np.ndarray,
    true_areas: np.ndarray,
    crowds: np.ndarray,
    size_limits: Sequence[float],
) -> Detections:
    """Give each detection, by falling score, the true object that it overlaps most and that no other has taken.

    Objects of another size and crowds are ignored, and so are detections matched with them; a detection gets one only
    if no other object is left. A crowd matches any number of detections. Unmatched detections of another size are
    ignored too. Among equal overlaps the last object wins.

    Args:
        scores: (D,), falling.
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
        # Objects in the order in which they are preferred, but those that are ignored come after all others.
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
    """The names of classes, by id; where several classes have one name, with the id behind it."""
    counts = Counter(names.values())
    return [name if counts[name] == 1 else f"{name} (id {class_id})" for class_id, name in names.items()]


def summarise(groups: Iterable[Sequence[Detections]], class_names: Sequence[str]) -> dict[str, Any]:
    """``METRICS`` and ``per_category`` (AP by name), in percent; ``None`` where there are no true objects.

    Args:
        groups: of each category, those of all videos. Of equal scores those of an earlier group count first.
        class_names: of each category, all different.
    """
    curves = [_curve(of_category) for of_category in groups]
    precision = np.array([curve[0] for curve in curves]).reshape(-1, 4, len(_THRESHOLDS), len(_RECALLS))
    recall = np.array([curve[1] for curve in curves]).reshape(-1, 2, len(_THRESHOLDS))
    everything = precision[:, 0]  # of any size: (categories, K, R)
    parts = everything, everything[:, 0], everything[:, _K75], *(precision[:, size] for size in (1, 2, 3))
    values = [_mean(part) for part in (*parts, recall[:, 0], recall[:, 1])]
    per_category = {name: _mean(of_one) for name, of_one in zip(class_names, everything, strict=True)}
    return {**dict(zip(METRICS, values, strict=True)), "per_category": per_category}


def _mean(values: np.ndarray) -> float | None:
    """Percent."""
    values = values[~np.isnan(values)]
    return 100 * float(values.mean()) if values.size else None


def _curve(groups: Sequence[Detections]) -> tuple[np.ndarray, np.ndarray]:
    """Precision (S, K, R), and recall (2, K) of any size with 1 and 10 detections a group; nan without true objects."""
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
    best = np.maximum.accumulate(best[:, :, ::-1], axis=2)[:, :, ::-1]  # at this recall or a higher one
    best = np.concatenate([best, np.zeros((*best.shape[:2], 1))], axis=2)  # no recall as high: 0
    for size in np.flatnonzero(num_true).tolist():
        for level, reached in enumerate(right[size] / num_true[size]):
            precision[size, level] = best[size, level, np.searchsorted(reached, _RECALLS)]
    return precision, recall
