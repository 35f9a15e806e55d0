# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The matcher against brute force, and its cost against the loss's own formulas."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from ausm_d2.training.criterion import dice_loss
from ausm_d2.training.matcher import HungarianMatcher, PointTargets

MATCHER = HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0)


def problem(frames: int = 4, queries: int = 5, instances: int = 3) -> tuple:
    masks = F.interpolate(torch.rand(frames, instances, 4, 4), scale_factor=8) > 0.5
    detect = torch.rand(frames, instances) < 0.8
    targets = PointTargets(masks, detect, num_points=32)
    logits = torch.randn(frames, queries, 7), torch.randn(frames, queries, 8, 8)
    return *logits, torch.randint(0, 6, (frames, instances)), targets


def test_the_cost_equals_the_loss() -> None:
    class_logits, mask_logits, classes, targets = problem()
    cost = MATCHER.cost(class_logits, mask_logits, classes, targets)
    sampled = F.grid_sample(mask_logits, 2 * targets.points[:, :, None] - 1, align_corners=False)[..., 0]
    for b, q, n in [(0, 0, 0), (1, 4, 2), (3, 2, 1)]:
        x, y = sampled[b, q], targets.values[b, n]
        bce = F.binary_cross_entropy_with_logits(x, y)
        expected = -2 * class_logits[b, q].softmax(-1)[classes[b, n]] + 5 * bce + 5 * dice_loss(x[None], y[None])[0]
        assert cost[b, q, n] == pytest.approx(float(expected), rel=1e-4)


def test_the_assignment_has_the_lowest_cost() -> None:
    class_logits, mask_logits, classes, targets = problem()
    cost = MATCHER.cost(class_logits, mask_logits, classes, targets)
    frame, row, instance = MATCHER(class_logits, mask_logits, classes, targets)
    for b in range(len(cost)):
        wanted = targets.detect[b].nonzero()[:, 0].tolist()
        found = dict(zip(instance[frame == b].tolist(), row[frame == b].tolist(), strict=True))
        assert sorted(found) == wanted
        total = sum(float(cost[b, q, n]) for n, q in found.items())
        best = min(
            sum(float(cost[b, q, n]) for n, q in zip(wanted, rows, strict=True))
            for rows in permutations(range(cost.shape[1]), len(wanted))
        )
        assert total == pytest.approx(best, rel=1e-5)


def test_more_instances_than_queries_and_no_instances() -> None:
    class_logits, mask_logits, classes, targets = problem(queries=2)
    targets.detect[:] = True
    frame, row, _ = MATCHER(class_logits, mask_logits, classes, targets)
    assert len(frame) == 8 and set(row.tolist()) == {0, 1}
    targets.detect[:] = False
    assert all(len(each) == 0 for each in MATCHER(class_logits, mask_logits, classes, targets))


def test_non_finite_costs_are_matched() -> None:
    class_logits, mask_logits, classes, targets = problem()
    class_logits[0, 0], mask_logits[1] = float("nan"), float("inf")
    frame, _, _ = MATCHER(class_logits, mask_logits, classes, targets)
    assert len(frame) == int(targets.detect.sum())
