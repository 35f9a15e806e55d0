# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Boxes, clicks and scribbles as coarse masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ausm_d2.errors import UserError
from ausm_d2.masks.drawn import CLICK_RADIUS, box_mask, click_radius, clicks_mask, scribble_mask

SIZE = (480, 640)


def test_a_box_holds_the_pixels_whose_middle_is_in_it() -> None:
    mask = box_mask(SIZE, (10, 20, 30, 25))
    rows, columns = np.nonzero(mask)
    assert mask.dtype == bool and mask.shape == SIZE
    assert (rows.min(), rows.max(), columns.min(), columns.max(), len(rows)) == (20, 24, 10, 29, 100)
    assert box_mask(SIZE, (10.6, 20.6, 12.4, 22.4)).sum() == 1


def test_a_box_that_holds_no_middle_of_a_pixel_is_one_pixel() -> None:
    assert np.argwhere(box_mask(SIZE, (7.6, 3.6, 8.3, 4.2))).tolist() == [[3, 7]]
    assert np.argwhere(box_mask(SIZE, (640, 480, 640, 480))).tolist() == [[479, 639]]


def test_a_box_may_stick_out_of_the_frame() -> None:
    assert box_mask(SIZE, (-50, -50, 2, 3)).sum() == 6


def test_a_click_is_a_disc_that_grows_with_the_frame() -> None:
    assert click_radius(SIZE) == CLICK_RADIUS and click_radius((120, 900)) == CLICK_RADIUS / 4
    mask = clicks_mask(SIZE, [(100, 200)])
    assert abs(mask.sum() / (math.pi * CLICK_RADIUS**2) - 1) < 0.02
    rows, columns = np.nonzero(mask)
    assert (rows.mean() + 0.5, columns.mean() + 0.5) == (200, 100)
    two = clicks_mask(SIZE, [(100, 200), (300, 200)])
    assert two.sum() == 2 * mask.sum() and clicks_mask(SIZE, [(100, 200)], radius=3).sum() < 40


def test_a_click_marks_a_pixel_however_small_the_frame() -> None:
    assert np.argwhere(clicks_mask((8, 8), [(8, 0)])).tolist() == [[0, 7]]


def test_a_scribble_is_a_line_through_its_points() -> None:
    mask = scribble_mask(SIZE, [(100, 100), (200, 100), (200, 180)])
    assert mask[100, 100:200].all() and mask[100:180, 199].all() and not mask[140, 150]
    assert abs(mask.sum() - (180 * 12 + 36 * math.pi)) < 50
    assert np.array_equal(scribble_mask(SIZE, [(50, 60)], width=10), clicks_mask(SIZE, [(50, 60)], radius=5))


@pytest.mark.parametrize(
    ("draw", "prompt"),
    [
        (box_mask, (30, 20, 10, 25)),
        (box_mask, (700, 20, 710, 25)),
        (box_mask, (float("nan"), 20, 30, 25)),
        (box_mask, (1, 2, 3)),
        (clicks_mask, []),
        (clicks_mask, [(641, 3)]),
        (clicks_mask, [(1, 2, 3)]),
        (scribble_mask, [(3, -1)]),
    ],
)
def test_invalid_prompts_are_refused(draw: Callable[..., np.ndarray], prompt: Sequence[float]) -> None:
    with pytest.raises(UserError, match=r"found|outside"):
        draw(SIZE, prompt)
