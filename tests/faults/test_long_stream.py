# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The long form is tests/faults/long_stream.py; docs/reliability.md says what was measured, and why."""

from __future__ import annotations

from tests.faults.long_stream import StillStream, by_track, run


def test_a_still_scene_comes_to_the_fixed_point_of_the_recurrence_and_stays_there() -> None:
    """What a stream comes to after thousands of frames; what then changes is float32 rounding, and does not add up."""
    still = StillStream(prompted=False, size=64)
    for _ in range(5):
        before = still.step()
    still.go_to_fixed_points(10)
    first = by_track(still.step())
    states = [each.clone() for each in still.scans]
    for _ in range(30):
        last = by_track(still.step())
    for state, now in zip(states, still.scans, strict=True):
        assert (now - state).norm() < 1e-5 * state.norm()  # 2^-23 a step, over the 15 frames that a channel recalls
    assert set(first) == set(last) == set(before.track_ids)
    for track, (mask, score) in first.items():
        assert (last[track][0] == mask).all() and abs(last[track][1] - score) < 1e-4


def test_masks_of_given_objects_change_at_their_borders_only() -> None:
    """M has whole cells of stride 4: a logit near zero at the border flips one as the state settles."""
    drift = run(60, prompted=True, settled=20)
    assert drift.steps == 60 and drift.tracks == [2, 3, 4] and drift.beyond_border == 0
