# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Degraded frames and shrunk frames."""

from __future__ import annotations

import numpy as np
import pytest

from ausm_d2.data.augmentation.geometry import Shrink
from ausm_d2.data.augmentation.looks import Look, Looks
from ausm_d2.data.augmentation.plan import ClipPlan
from ausm_d2.data.augmentation.render import render_frame, render_mask
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import encode
from tests.data.stubs import small_cfg

GREY, EYE = np.broadcast_to(np.array([0.299, 0.587, 0.114]), (3, 3)), np.eye(3)


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def clip() -> np.ndarray:
    return np.stack([picture().transpose(2, 0, 1)] * 2)


def test_grey_contrast_and_brightness_are_a_matrix_on_the_colours() -> None:
    plan = ClipPlan.identity(2, (48, 64))
    Look(0.5 * GREY, np.full(3, 60.0)).colour(plan)
    frame = render_frame(picture(), plan, 1, (0.0, 0.0, 0.0))
    expected = 0.5 * picture() @ GREY[0] + 60
    assert np.abs(frame - expected[..., None]).max() <= 1 and (frame == frame[..., :1]).all()


@pytest.mark.parametrize(
    ("look", "least", "most"),
    [
        ({}, 0, 0),
        ({"blur": 1.5}, 3, 40),
        ({"resolution": 0.4}, 3, 40),
        ({"noise": 15.0}, 8, 20),
        ({"jpeg": 20}, 2, 30),
    ],
)
def test_each_degradation_changes_pixels_as_named(look: dict[str, float], least: float, most: float) -> None:
    frames = clip()
    Look(EYE, np.zeros(3), seed=5, **look).degrade(frames)  # type: ignore[arg-type]
    difference = np.abs(frames.astype(int) - clip()).mean(axis=(1, 2, 3))
    assert frames.dtype == np.uint8 and (difference >= least).all() and (difference <= most).all()
    assert (frames[0] != frames[1]).any() == ("noise" in look)  # the noise of every frame is its own


def test_a_look_is_the_same_whenever_it_is_applied() -> None:
    look = Look(EYE, np.zeros(3), noise=10.0, jpeg=40, resolution=0.6, seed=3)
    first, second = clip(), clip()
    look.degrade(first)
    look.degrade(second)
    assert np.array_equal(first, second)


def test_looks_are_drawn_as_often_and_as_far_as_the_config_says() -> None:
    cfg = small_cfg(INPUT__LOOKS__PROB=0.5, INPUT__LOOKS__GREY=0.25)
    looks, rng = Looks.from_config(cfg), np.random.default_rng(0)
    drawn = [looks(rng) for _ in range(2000)]
    some = [look for look in drawn if look is not None]
    grey = [look for look in some if np.linalg.matrix_rank(look.linear) == 1]
    assert abs(1 - len(some) / 2000 - 0.5 * 0.75) < 0.03 and abs(len(grey) / 2000 - 0.25) < 0.03
    assert 0.45 > min(look.resolution for look in some) >= 0.4 and max(look.noise for look in some) <= 20
    assert min(look.jpeg for look in some if look.jpeg) >= 15
    assert all(look is None for look in map(Looks.from_config(small_cfg()), [rng] * 50))


@pytest.mark.parametrize(("key", "value"), [("PROB", -0.5), ("GREY", 2.0)])
def test_invalid_degradations_name_their_key(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"INPUT.LOOKS.{key}: .* found"):
        Looks.from_config(small_cfg(**{f"INPUT__LOOKS__{key}": value}))


def test_a_shrunk_clip_shows_the_frame_in_a_part_of_itself_and_its_mirror_image_around() -> None:
    plan = ClipPlan.identity(3, (48, 64))
    Shrink(0.5)(plan, np.random.default_rng(1))
    scale = plan.matrices[0, 0, 0]
    assert 0.5 <= scale <= 1 and plan.size == (48, 64) and plan.surroundings is not None
    for matrix in plan.matrices:  # the part stays inside of the frame
        corners = matrix[:2, :2] @ [[0, 64], [0, 48]] + matrix[:2, 2:]
        assert corners.min() >= -1e-9 and (corners.max(axis=1) <= [64 + 1e-9, 48 + 1e-9]).all()
    white = render_frame(np.full((48, 64, 3), 200, np.uint8), plan, 0, (0.0, 0.0, 0.0))
    assert (white == 200).all()  # no border of another colour
    mask = np.zeros((48, 64), bool)
    mask[8:40, 16:48] = True
    target = np.zeros((48, 64), bool)
    assert render_mask(encode(mask), (48, 64), plan, 0, target)
    assert abs(target.sum() / (mask.sum() * scale**2) - 1) < 0.1  # and the mask is there once


def test_a_part_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(UserError, match=r"INPUT.SHRINK.SMALLEST: 1.5 found"):
        Shrink(1.5)
