# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest

from ausm_d2.visualization import colour, contact_sheet, draw_masks, readable_scale

GREY = 100


def grey(height: int = 40, width: int = 60) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def box(x: int, y: int, side: int = 12) -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_colours_are_stable_and_told_apart() -> None:
    first = [colour(i) for i in range(1, 21)]
    assert first == [colour(i) for i in range(1, 21)] and len(set(first)) == 20
    assert all(0 <= channel <= 255 for each in first for channel in each)
    lab = cv2.cvtColor(np.float32([first]) / 255, cv2.COLOR_BGR2LAB)[0]
    distance = np.linalg.norm(lab[:, None] - lab, axis=2) + 1000 * np.eye(20)
    assert distance.min() > 25 and distance[:8, :8].min() > 50
    assert isinstance(colour(10**6), tuple)  # ids have no end


def test_a_mask_is_filled_and_outlined_and_nothing_else_changes() -> None:
    picture, mask = grey(), box(20, 10)
    drawn = draw_masks(picture, mask[None], [3])
    assert (picture == GREY).all() and (drawn[~mask] == GREY).all()
    inner = mask & ~(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0)
    assert (drawn[mask & ~inner] == colour(3)).all()
    expected = 0.55 * GREY + 0.45 * np.array(colour(3))
    assert np.abs(drawn[inner] - expected).max() <= 1


def test_overlapping_empty_and_no_masks() -> None:
    masks = np.stack([box(10, 10), box(15, 15), np.zeros((40, 60), bool)])
    drawn = draw_masks(grey(), masks, [1, 2, 3], ["a", "b", "c"])
    assert (drawn[~masks.any(0)][:, 0] == GREY).mean() > 0.5
    assert np.array_equal(draw_masks(grey(), masks[2:], [3], ["unseen"]), grey())
    assert np.array_equal(draw_masks(grey(), masks[:0], [], []), grey())
    turned = np.asfortranarray(box(10, 10))[None]  # not contiguous
    assert np.array_equal(draw_masks(grey(), turned, [1]), draw_masks(grey(), box(10, 10)[None], [1]))


def label_pixels(x: int, y: int) -> np.ndarray:
    """bool (320, 480): what the label of a box changes."""
    mask = np.kron(box(x, y), np.ones((8, 8))) > 0
    with_label, without = (draw_masks(grey(320, 480), mask[None], [1], labels) for labels in (["17 person 0.93"], None))
    return (with_label != without).any(axis=2)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (48, 0), (0, 28), (48, 28), (59, 39)])
def test_a_label_stays_inside_the_picture(x: int, y: int) -> None:
    sizes = [[int(np.ptp(axis)) for axis in np.nonzero(label_pixels(*place))] for place in ((x, y), (20, 14))]
    # Where it lies on its own mask, it covers an outline of its colour.
    assert np.abs(np.subtract(*sizes)).max() <= 1 and sizes[0][1] > 60


def test_a_label_is_at_the_largest_part() -> None:
    mask = np.zeros((320, 480), bool)
    mask[10:14, 10:14] = mask[200:280, 300:400] = True
    with_label, without = (draw_masks(grey(320, 480), mask[None], [1], labels) for labels in (["7"], None))
    rows, columns = np.nonzero((with_label != without).any(axis=2))
    assert rows.min() > 180 and columns.min() >= 300


def test_small_pictures_are_enlarged() -> None:
    assert [readable_scale(*size) for size in ((96, 160), (480, 854), (900, 30), (2000, 30))] == [4, 1, 2, 1]
    drawn = draw_masks(grey(), box(20, 10)[None], [3], scale=4)
    assert drawn.shape == (160, 240, 3)
    assert (drawn[:40] == GREY).all() and (drawn[40, 80] == colour(3)).all() and (drawn[87, 127] == colour(3)).all()


def test_a_contact_sheet_has_every_picture() -> None:
    pictures = [np.full((20, 30, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet([pictures[:2], pictures[2:]])
    assert sheet.shape == (2 * 24 + 4, 2 * 34 + 4, 3)
    assert (sheet[4:24, 4:34] == 10).all() and (sheet[4:24, 38:68] == 20).all() and (sheet[28:48, 4:34] == 30).all()
    assert (sheet[28:48, 38:] == 255).all()
    titled = contact_sheet([pictures], ["first row"])
    assert titled.shape[0] > 28 and (titled[32:52, 4:34] == 10).all() and (titled[:32] < 128).any()
