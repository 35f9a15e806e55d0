# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ausm_d2.modeling.masks import mask_boxes, masks_at_stride4, upsample_logits, winners, without_overlaps


def test_masks_at_stride_4_by_half_the_area() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :2, :4] = True  # 8 of 16 pixels
    mask[0, 4:5, :4] = True
    mask[0, 5, :3] = True  # 7 of 16
    assert masks_at_stride4(mask).tolist() == [[[1.0, 0.0], [0.0, 0.0]]]


def test_a_mask_too_small_for_any_cell_keeps_its_fullest() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 3:5, 2:4] = True  # two pixels in each of two cells
    masks[0, 4, 1] = True  # and one more in the lower one
    assert masks_at_stride4(masks).tolist() == [[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]


def by_hand(logits: Tensor, input_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Bilinear sampling where the centre of each pixel lies in the grid of cells (R, H4, W4), in float64."""
    values = logits.double().numpy()
    for axis in (0, 1):
        places = (np.arange(size[axis]) + 0.5) * input_size[axis] / size[axis] / 4 - 0.5
        cells = np.arange(values.shape[axis + 1])
        values = np.apply_along_axis(lambda row, at=places, x=cells: np.interp(at, x, row), axis + 1, values)
    return values


@pytest.mark.parametrize(
    ("input_size", "size"),
    [
        ((64, 96), (64, 96)),  # as stored, no padding
        ((50, 70), (50, 70)),  # as stored, padded
        ((50, 96), (100, 192)),  # enlarged, padded on one side only
        ((61, 67), (33, 41)),  # shrunk, odd sizes
        ((96, 170), (1080, 1913)),
        ((49, 97), (147, 291)),  # 3 times; its scale is rounded in floating point
        ((1, 1), (7, 5)),
    ],
)
def test_masks_are_upsampled_to_where_they_belong(input_size: tuple[int, int], size: tuple[int, int]) -> None:
    padded = [-(-side // 32) * 8 for side in input_size]
    logits = torch.randn(2, *padded)
    upsampled = upsample_logits(logits, input_size, size)
    assert upsampled.shape == (2, *size)
    np.testing.assert_allclose(upsampled.numpy(), by_hand(logits, input_size, size), atol=2e-3)


def test_upsampling_no_rows() -> None:
    assert upsample_logits(torch.zeros(0, 16, 24), (50, 70), (50, 70)).shape == (0, 50, 70)


def test_a_pixel_goes_to_the_row_with_the_largest_logit() -> None:
    logits = torch.tensor([[[3.0, 1.0, -1.0]], [[2.0, 4.0, -2.0]], [[-1.0, 5.0, -3.0]]])
    assert winners(logits).tolist() == [[0, 2, -1]]
    assert without_overlaps(logits)[:, 0].tolist() == [[True, False, False], [False] * 3, [False, True, False]]
    assert winners(logits[:0]).tolist() == [[-1, -1, -1]] and without_overlaps(logits[:0]).shape == (0, 1, 3)


def test_boxes_are_those_of_the_masks() -> None:
    masks = torch.zeros(2, 1, 64, 96, dtype=torch.bool)
    masks[0, 0, 8:40, 16:48] = True
    assert mask_boxes(masks).tolist() == [[[16, 8, 48, 40]], [[0, 0, 0, 0]]]
