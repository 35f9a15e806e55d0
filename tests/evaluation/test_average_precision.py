# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from ausm_d2.evaluation import average_precision

LIMITS = (30, 60)
NAMES = "abc"

# By place and category: scores (D,), falling; overlaps (D, G); areas (D,), (G,); crowds (G,)
Groups = dict[tuple[int, int], tuple[np.ndarray, ...]]


def random_groups(rng: np.random.Generator, places: int) -> Groups:
    """Equal scores, equal overlaps, overlaps and areas at the limits, crowds, too many detections, empty input."""
    groups: Groups = {}
    for place in range(places):
        for category in range(2 if rng.random() < 0.5 else 3):
            if rng.random() < 0.2:
                continue
            num = int(rng.integers(0, 12)) if rng.random() < 0.9 else 100
            true = int(rng.integers(0, 6))
            overlaps = np.round(rng.random((num, true)), int(rng.integers(1, 3)))
            overlaps[rng.random((num, true)) < 0.1] = 1
            groups[place, category] = (
                np.sort(np.round(rng.random(num), 1))[::-1],
                overlaps,
                rng.choice([0.0, 10, 30, 45, 60, 80], num),
                rng.choice([0.0, 10, 30, 45, 60, 80], true),
                rng.random(true) < 0.25,
            )
    return groups


class Reference(COCOeval):
    """COCOeval on the same groups."""

    def __init__(self, groups: Groups, places: int) -> None:
        super().__init__(iouType="segm")
        self._groups = groups
        self.params.imgIds, self.params.catIds = list(range(places)), list(range(len(NAMES)))
        small, large = LIMITS
        self.params.areaRng = [[0, 1e10], [0, small], [small, large], [large, 1e10]]

    def _prepare(self) -> None:
        self._gts, self._dts = defaultdict(list), defaultdict(list)
        for key, (scores, _, areas, true_areas, crowds) in self._groups.items():
            for index, (area, crowd) in enumerate(zip(true_areas, crowds, strict=True)):
                crowd = int(crowd)
                self._gts[key].append({"id": index + 1, "area": area, "iscrowd": crowd, "ignore": crowd})
            for index, (area, score) in enumerate(zip(areas, scores, strict=True)):
                self._dts[key].append({"id": index + 1, "area": area, "score": score})
        self.evalImgs: list[Any] = []
        self.eval: dict[str, Any] = {}

    def computeIoU(self, imgId: int, catId: int) -> Any:
        return self._groups[imgId, catId][1] if (imgId, catId) in self._groups else []

    def scores(self) -> dict[str, Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluate()
            self.accumulate()
            self.summarize()
        values = [None if value < 0 else 100 * value for value in self.stats]
        curves = [self.eval["precision"][:, :, category, 0, -1] for category in range(len(NAMES))]
        per_category = {
            name: 100 * curve[curve > -1].mean() if (curve > -1).any() else None
            for name, curve in zip(NAMES, curves, strict=True)
        }
        return {**dict(zip(average_precision.METRICS, values, strict=False)), "per_category": per_category}


@pytest.mark.parametrize("seed", range(40))
def test_equals_cocoeval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = int(rng.integers(1, 6))
    groups = random_groups(rng, places)
    matched = [
        [average_precision.match(*groups[place, c], LIMITS) for place in range(places) if (place, c) in groups]
        for c in range(len(NAMES))
    ]
    ours, theirs = average_precision.summarise(matched, NAMES), Reference(groups, places).scores()
    assert ours.pop("per_category") == pytest.approx(theirs.pop("per_category"), abs=1e-9)
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_no_detections_and_no_ground_truth() -> None:
    empty = dict.fromkeys(average_precision.METRICS)
    assert average_precision.summarise([], []) == {**empty, "per_category": {}}
    assert average_precision.summarise([[]], ["a"]) == {**empty, "per_category": {"a": None}}
