# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ausm_d2.data.clip_sampler import ClipSampler
from ausm_d2.errors import UserError


def draws(length: int, count: int = 300, **options: object) -> list[list[int]]:
    rng = np.random.default_rng(0)
    sampler = ClipSampler(**options)
    return [sampler(range(length), rng) for _ in range(count)]


@pytest.mark.parametrize("length", [5, 6, 9, 40, 200])
def test_range_keeps_to_window_without_repetition(length: int) -> None:
    for clip in draws(length, num_frames=5, frame_range=4):
        assert clip == sorted(set(clip)) and len(clip) == 5
        assert clip[0] >= 0 and clip[-1] < length and clip[-1] - clip[0] <= 8


def test_every_frame_is_drawn() -> None:
    seen = {index for clip in draws(30, num_frames=2, frame_range=3) for index in clip}
    assert seen == set(range(30))


def test_clip_longer_than_the_window_takes_what_the_video_has() -> None:
    for clip in draws(20, num_frames=16, frame_range=2):
        assert clip == sorted(set(clip)) and len(clip) == 16


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_video_is_played_to_and_fro(length: int) -> None:
    for clip in draws(length, num_frames=7, frame_range=20):
        assert len(clip) == 7
        assert set(clip) == set(range(length))
        assert all(abs(a - b) == (length > 1) for a, b in pairwise(clip))


def test_stride_is_even_and_fits_the_video() -> None:
    steps = set()
    for clip in draws(20, num_frames=4, stride=3):
        (step,) = set(np.diff(clip).tolist())
        steps.add(step)
    assert steps == {1, 2, 3}
    for clip in draws(5, num_frames=4, stride=3):
        assert set(np.diff(clip).tolist()) == {1}


def test_a_clip_is_reversed_with_the_probability_asked_for() -> None:
    backwards = [clip == sorted(clip, reverse=True) for clip in draws(50, num_frames=3, reverse=0.5)]
    assert 0.3 < np.mean(backwards) < 0.7


def test_only_candidates_are_drawn() -> None:
    sampler = ClipSampler(num_frames=3, frame_range=2)
    rng = np.random.default_rng(0)
    assert all(set(sampler([0, 4, 8, 12, 16], rng)) <= {0, 4, 8, 12, 16} for _ in range(50))


def test_single_frame_clip() -> None:
    assert draws(1, count=1, num_frames=1) == [[0]]
    assert all(len(clip) == 1 for clip in draws(9, num_frames=1, stride=4))


def test_bad_options_name_the_keys() -> None:
    with pytest.raises(UserError, match="SAMPLING_FRAME"):
        ClipSampler(num_frames=0)
