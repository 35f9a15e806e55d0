# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from ausm_d2.errors import UserError
from ausm_d2.streaming.visits import Visit, crop, visits


def order(length: int, repeat: int) -> list[str]:
    """Frame numbers in the order of visits; those that count have a star."""
    return [f"{v.frame}{'*' * v.counts}" for v in visits(length, repeat=repeat, spatial_traversal=False)]


def test_a_video_is_played_forward_backward_forward() -> None:
    assert order(3, 1) == ["0*", "1*", "2*"]
    assert order(3, 2) == ["0", "1", "2*", "1*", "0*"]
    assert order(3, 3) == ["0", "1", "2", "1", "0*", "1*", "2*"]
    assert order(2, 4) == ["0", "1", "0", "1*", "0*"]


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("repeat", [1, 2, 3, 4])
def test_every_frame_counts_once(length: int, repeat: int) -> None:
    counted = [v.frame for v in visits(length, repeat=repeat, spatial_traversal=False) if v.counts]
    assert sorted(counted) == list(range(length))


def test_an_image_is_a_still_video() -> None:
    assert order(1, 3) == ["0", "0", "0*"]


def test_spatial_traversal_goes_around_the_image() -> None:
    corners = [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0)]  # UL, UR, BR, BL
    around = [Visit(0, False), *(Visit(0, False, corner) for corner in corners)]
    assert list(visits(1, repeat=1, spatial_traversal=True)) == [*around, Visit(0, True)]
    twice = list(visits(1, repeat=2, spatial_traversal=True))
    assert twice == [*around, Visit(0, False), *around, Visit(0, True)]


def test_a_crop_is_nine_tenths_of_its_corner() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for corner, (y, x) in {(0.0, 0.0): (0, 0), (0.0, 1.0): (0, 6), (1.0, 1.0): (4, 6), (1.0, 0.0): (4, 0)}.items():
        view = crop(image, corner)
        assert view.shape == image.shape
        part = image[y : y + 36, x : x + 54].astype(int)
        # The corners of a bilinear resize are those of its input, and so nearly are the means.
        assert (view[[0, 0, -1, -1], [0, -1, 0, -1]] == part[[0, 0, -1, -1], [0, -1, 0, -1]]).all()
        assert abs(view.mean() - part.mean()) < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 3, "repeat": 0, "spatial_traversal": False}, "TEST.AUSM.REPEAT: 0, expected 1 or more"),
        ({"length": 3, "repeat": 1, "spatial_traversal": True}, "is for images, this video has 3 frames"),
    ],
)
def test_invalid_repetitions_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(visits(**arguments))
