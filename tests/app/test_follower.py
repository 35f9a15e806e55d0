# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ausm_d2.app import follower as module
from ausm_d2.app.clip import Clip
from ausm_d2.app.follower import Follower, Turns
from ausm_d2.app.plan import Plan
from ausm_d2.app.records import Records
from ausm_d2.data.frames import VideoFile
from ausm_d2.masks.rle import decode
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.prompts import Box, Points
from tests.video.clips import write_clip

LENGTH = 16


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    return Clip(write_clip(tmp_path / "a.mp4", LENGTH), "a.mp4", max_frames=100)


@pytest.fixture
def plan() -> Plan:
    return Plan()


@pytest.fixture
def follower(tiny_predictor: VideoPredictor, clip: Clip, plan: Plan, tmp_path: Path) -> Follower:
    return Follower(tiny_predictor, Turns(), clip, plan, Records(tmp_path / "records"))


def found(follower: Follower, frame: int) -> dict[int, np.ndarray]:
    return {each.id: decode(each.mask) for each in follower.records.get(frame)}


def run(follower: Follower) -> list[int]:
    return list(follower.run(lambda: False))


def test_a_run_is_a_session_with_the_same_prompts(
    follower: Follower, plan: Plan, clip: Clip, tiny_predictor: VideoPredictor
) -> None:
    plan.add(2, None, Box(5, 5, 30, 30))
    follower.changed(2)
    plan.add(5, None, Box(35, 20, 65, 45))
    plan.add(5, 1, Points([(12, 12)], [0]))
    follower.changed(5)
    assert run(follower) == list(range(6, LENGTH))
    session = tiny_predictor.start(clip.frame(2), {})
    session.add(1, Box(5, 5, 30, 30))
    for number in range(3, LENGTH):
        result = session.step(clip.frame(number))
        if number == 5:
            session.add_all({2: Box(35, 20, 65, 45), 1: Points([(12, 12)], [0])})
            result = session.result
        expected = dict(zip(result.instances.track_ids.tolist(), result.instances.pred_masks.numpy(), strict=True))
        masks = found(follower, number)
        assert masks.keys() == {i for i, mask in expected.items() if mask.any()}
        assert all(np.array_equal(mask, expected[i]) for i, mask in masks.items())


@pytest.mark.parametrize("frame", [9, 14])  # behind a keyframe, and far from one
def test_a_correction_far_back_gives_what_a_run_with_it_would_have_given(
    frame: int, follower: Follower, plan: Plan, clip: Clip, tiny_predictor: VideoPredictor, tmp_path: Path
) -> None:
    plan.add(0, None, Box(5, 5, 30, 30))
    follower.changed(0)
    run(follower)
    before = found(follower, frame)
    plan.add(frame, 1, Points([(60, 40)], [1]))
    follower.changed(frame)
    assert not np.array_equal(found(follower, frame).get(1), before.get(1))  # at once
    assert follower.done in (frame, frame + 1)
    numbers = run(follower)
    assert numbers[-1] == LENGTH - 1 and follower.done == LENGTH
    other = Follower(tiny_predictor, Turns(), clip, plan, Records(tmp_path / "other"))
    other.changed(0)
    run(other)
    for number in range(LENGTH):
        one, two = found(follower, number), found(other, number)
        assert one.keys() == two.keys() and all(np.array_equal(mask, two[i]) for i, mask in one.items())


def test_keyframes_stay_within_their_memory(follower: Follower, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEYFRAME_BYTES", 0)
    monkeypatch.setattr(module, "_STRIDE", 2)
    plan.add(0, None, Box(5, 5, 30, 30))
    follower.changed(0)
    run(follower)
    kept = sorted(follower._keys)
    assert len(kept) == 4 and kept[0] == 0 and kept[-1] == LENGTH - 1


def test_what_is_found_never_gets_the_id_of_what_is_given(follower: Follower, plan: Plan) -> None:
    plan.find_at = 0
    follower.changed(0, again=True)
    run(follower)
    given = plan.add(12, None, Box(5, 5, 30, 30))
    before = {i for number in range(12) for i in found(follower, number)}
    assert given > max(before, default=0)
    follower.changed(12)
    run(follower)
    assert given in follower.records.seen[12]
    assert plan.last_id >= max(i for seen in follower.records.seen.values() for i in seen)


def test_a_run_that_is_stopped_goes_on_where_it_was(follower: Follower, plan: Plan) -> None:
    plan.add(0, None, Box(5, 5, 30, 30))
    follower.changed(0)
    steps = iter(range(100))
    first = list(follower.run(lambda: next(steps) > 10))
    assert 0 < len(first) < LENGTH - 1
    assert first + run(follower) == list(range(1, LENGTH))


def test_turns_are_given_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order = Turns(), []

    def work(number: int) -> None:
        with turns():
            order.append(number)

    with turns():
        threads = []
        for number in range(4):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            while len(turns._waiting) < number + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_any_frame_can_be_shown_in_any_order(clip: Clip) -> None:
    straight = VideoFile(str(clip.path), "bgr24")
    expected = [straight[number] for number in range(LENGTH)]
    for number in (0, 12, 3, 15, 3, 11):
        assert np.array_equal(clip.frame(number), expected[number])
    frames = list(clip.frames(5))
    assert [frame.name for frame in frames] == [f"{number:05d}" for number in range(5, LENGTH)]
    assert frames[0].time == pytest.approx(5 / 25) and np.array_equal(frames[0].image, expected[5])
