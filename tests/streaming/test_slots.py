# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Assignment of slots and ID vectors."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from ausm_d2.errors import UserError
from ausm_d2.streaming.slots import FREE, Slots


def slots(num_id: int = 4) -> Slots:
    return Slots.empty(num_id, 2, seed=0)


def detected(of: Slots, *rows: int, frame_index: int = 0, **options: set[int]) -> dict[int, int]:
    """Detections in these rows of Q: class 1, with probability row / 10."""
    probabilities = torch.zeros(20, 2, dtype=torch.float64)
    probabilities[:, 1] = torch.arange(20, dtype=torch.float64) / 10
    return of.allocate(rows, probabilities, frame_index=frame_index, **options)


def test_detections_take_free_slots_in_order_with_vectors_of_their_own() -> None:
    of = slots()
    assert detected(of, 9, 5, 7) == {0: 9, 1: 5, 2: 7}
    assert of.followed() == [1, 2, 3] and len(set(of.ids[:3].tolist())) == 3 and of.ids[3] == FREE
    assert of.class_sums[:, 1].tolist() == [0.9, 0.5, 0.7, 0] and of.predicted.tolist() == [1, 1, 1, 0]
    assert not of.prompted.any()


def test_reserve_changes_nothing_and_give_occupies_the_reserved_slots() -> None:
    of = slots()
    detected(of, 9)
    before = copy.deepcopy(vars(of) | {"generator": of.generator.get_state()})
    reserved = of.reserve([50, 1, 40], 0)
    assert reserved == {50: 1, 1: 0, 40: 2} and list(reserved) == [50, 1, 40]
    after = vars(of) | {"generator": of.generator.get_state()}
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(
        before.values(), after.values(), strict=True))  # fmt: skip
    vector = int(of.ids[0])
    of.give(reserved, 3)
    assert of.followed() == [1, 50, 40] and of.ids[0] == vector  # a corrected object keeps its vector
    assert of.prompted.tolist() == [True, True, True, False] and of.last_seen.tolist()[:3] == [3, 3, 3]
    assert of.next_track_id == 51 and of.predicted.tolist() == [1, 0, 0, 0]


def test_prompted_objects_get_slots_before_detections() -> None:
    of = slots(2)
    reserved = of.reserve([7], -1)
    assert detected(of, 9, 8, reserved=set(reserved.values())) == {1: 9}
    of.give(reserved, 0)
    assert of.followed() == [7, 1] and of.dropped == 1


def test_the_longest_hidden_unprompted_track_is_evicted_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    of = slots(3)
    detected(of, 9, 8, 7)
    probabilities = torch.zeros(3, 2, dtype=torch.float64)
    of.update(probabilities, torch.tensor([True, False, True]), 1)
    of.update(probabilities, torch.tensor([False, False, True]), 2)
    with caplog.at_level(logging.WARNING, "ausm_d2"):
        assert of.reserve([60, 61], 2) == {60: 1, 61: 0}
        assert detected(of, 5, frame_index=2) == {1: 5} and of.followed() == [1, 4, 3]
        with pytest.raises(UserError, match=r"4 new objects cannot be followed: 3 of 3 ID vectors"):
            of.reserve([60, 61, 62, 63], 2)
        of.give(of.reserve([60], 2), 2)
        assert detected(of, 6, frame_index=2) == {} and of.followed() == [60, 4, 3]
    assert (of.recycled, of.dropped) == (2, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "frame 2: all 3 ID vectors are in use; from here on the longest-unseen tracks are recycled"
    ]
    assert sorted(of.ids.tolist()) == [0, 1, 2]


def test_prompted_objects_evict_the_least_confident_visible_track() -> None:
    of = slots(3)
    detected(of, 9, 8, 7)
    of.class_sums[:] = torch.tensor([[0.9, 0.0], [0.1, 0.2], [0.0, 0.8]])
    assert of.reserve([60, 61], 0) == {60: 1, 61: 2}
    of.give(of.reserve([60], 0), 0)
    assert of.followed() == [1, 60, 3] and of.reserve([61, 62], 0) == {61: 2, 62: 0}
    with pytest.raises(UserError, match=r"3 new objects cannot be followed: 2 of 3 ID vectors"):
        of.reserve([61, 62, 63], 0)


def test_a_removed_object_returns_its_id_vector() -> None:
    of = slots(2)
    detected(of, 9, 8)
    vector = int(of.ids[1])
    assert of.remove(2) == 1 and of.followed() == [1] and of.ids[1] == FREE
    of.class_sums[1], of.predicted[1] = 5.0, 9  # of the object before
    of.give(of.reserve([30], 0), 0)
    assert of.ids[1] == vector and not of.class_sums[1].any() and of.predicted[1] == 0
    with pytest.raises(UserError, match=r"object 2 is not followed; followed now: \[1, 30\]"):
        of.remove(2)


def test_records_are_saved_and_loaded_with_the_position_of_the_sampler() -> None:
    of, other = slots(), slots()
    detected(of, 9, 8)
    other.load_state_dict(of.state_dict())
    assert other.ids is not of.ids
    for each in (of, other):
        detected(each, 7, 6)
    assert torch.equal(of.ids, other.ids) and of.followed() == other.followed() == [1, 2, 3, 4]
