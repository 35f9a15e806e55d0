# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The driver's slots against those of the stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ausm_d2.errors import UserError
from ausm_d2.export import slots as numpy_slots
from ausm_d2.streaming import slots as torch_slots

NUM_ID, CLASSES = 6, 2


@pytest.mark.parametrize("rule", ["mean", "visible", "max"])
@pytest.mark.parametrize("seed", [0, 7, 12345678901])
def test_a_long_history_gives_the_same_slots_and_id_vectors(seed: int, rule: str) -> None:
    rng = np.random.default_rng(0)
    one = numpy_slots.Slots.empty(NUM_ID, CLASSES, seed)
    two = torch_slots.Slots.empty(NUM_ID, CLASSES, seed=seed)
    for frame in range(60):
        scores, visible = rng.random((NUM_ID + 4, CLASSES)) / 2, rng.random(NUM_ID) > 0.4
        one.update(scores[:NUM_ID], visible, frame, rule)
        two.update(torch.from_numpy(scores[:NUM_ID]), torch.from_numpy(visible), frame, rule=rule)
        wanted = rng.integers(1, 90, rng.integers(0, 2)).tolist()
        reserved = one.reserve(wanted, frame)
        assert reserved == two.reserve(wanted, frame)
        found = (NUM_ID + rng.permutation(4)[: rng.integers(0, 4)]).tolist()
        held = set(reserved.values())
        assert one.allocate(found, scores, frame, held) == two.allocate(
            found, torch.from_numpy(scores), frame_index=frame, reserved=held
        )
        one.give(reserved, frame)
        two.give(reserved, frame)
        gone = one.track_ids[one.in_use & one.prompted].tolist()[3:]  # so that there is always room for one more
        for track_id in gone or one.followed()[: int(frame % 3 == 0)]:
            assert one.remove(track_id) == two.remove(track_id)
        assert one.ids.tolist() == two.ids.tolist() and one.followed() == two.followed()
        used = one.in_use
        assert np.allclose(one.class_sums[used], two.class_sums[two.in_use].numpy())
        assert one.predicted[used].tolist() == two.predicted[two.in_use].tolist()
        assert one.prompted.tolist() == two.prompted.tolist() and one.next_track_id == two.next_track_id


def test_what_does_not_fit_is_refused() -> None:
    of = numpy_slots.Slots.empty(2, 1, 0)
    of.give(of.reserve([5, 6], 0), 0)
    with pytest.raises(UserError, match="1 new objects do not fit: 0 of 2 ID vectors"):
        of.reserve([7], 0)
    with pytest.raises(UserError, match=r"object 7 is not followed; followed now: \[5, 6\]"):
        of.remove(7)


def test_overlap_of_masks() -> None:
    one = np.zeros((2, 2, 4), bool)
    one[0, 0], one[1] = True, True
    assert numpy_slots.mask_iou(one, one).tolist() == [[1.0, 0.5], [0.5, 1.0]]
    assert numpy_slots.mask_iou(one[:0], one).shape == (0, 2)
