# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Coarse masks of known objects, and clips prompted with them."""

from __future__ import annotations

import numpy as np
import pytest

from ausm_d2.data import coarse
from ausm_d2.data.build import build_train_loader
from ausm_d2.data.coarse import coarse_mask
from ausm_d2.data.mapper import ClipMapper
from tests.data.stubs import moving_square, register, small_cfg

SIZE = (120, 160)


def ring() -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(rows - 60, columns - 80)
    return (distance < 40) & (distance > 28)


@pytest.mark.parametrize("kind", ["box", "click", "clicks", "scribble"])
def test_what_is_drawn_is_on_the_object(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "_SHARES", tuple(float(name == kind) for name in coarse._KINDS))
    rng, mask = np.random.default_rng(0), ring()
    for _ in range(50):
        drawn = coarse_mask(mask, rng)
        assert drawn.dtype == bool and drawn.shape == SIZE and (drawn & mask).any()
        if kind == "box":  # of 79 x 79 pixels, each side up to 6 % off
            assert 0.77 < drawn.sum() / 79**2 < 1.26
        elif kind == "click":  # of radius 3 (12 where the shorter side has 480), times 0.7 to 1.4
            assert 8 < drawn.sum() < 70


def test_all_kinds_are_drawn() -> None:
    rng = np.random.default_rng(0)
    areas = [coarse_mask(ring(), rng).sum() for _ in range(200)]
    assert 40 < sum(area > 4000 for area in areas) < 100


def test_an_object_of_one_pixel_can_be_drawn() -> None:
    mask = np.zeros(SIZE, bool)
    mask[7, 11] = True
    rng = np.random.default_rng(0)
    assert all(coarse_mask(mask, rng)[7, 11] for _ in range(50))


def test_a_clip_that_is_given_a_coarse_mask_shows_its_first_frame_twice() -> None:
    register("stub_train", [moving_square(1)])
    cfg = small_cfg("stub_train", INPUT__DRAWN_PROMPTS=1.0)
    item = ClipMapper(cfg)("stub_train", moving_square(1), np.random.default_rng(1))
    image, masks, given = (item[name].numpy() for name in ("image", "masks", "given"))
    assert item["prompted"] and image.shape[0] == 4
    assert np.array_equal(image[0], image[1]) and np.array_equal(masks[:, 0], masks[:, 1])
    assert not np.array_equal(image[1], image[2])
    assert item["frame_indices"][0] == item["frame_indices"][1] and item["labelled"].all()
    visible = masks[:, 0].any(axis=(1, 2))
    assert np.array_equal(given.any(axis=(1, 2)), visible) and not np.array_equal(given, masks[:, 0])


def test_other_clips_are_given_true_masks() -> None:
    register("stub_train", [moving_square(1)])
    for share, expected in ((0.0, 0), (0.5, None), (1.0, 40)):
        cfg = small_cfg("stub_train", INPUT__DRAWN_PROMPTS=share)
        batches = iter(build_train_loader(cfg))
        drawn = sum(item["given"] is not None for _ in range(20) for item in next(batches))
        assert drawn == expected if expected is not None else 10 < drawn < 30
