# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Preprocess, formula by formula (paper, Sec. 5), and the noise on the history."""

from __future__ import annotations

import pytest
import torch

from ausm_d2.training.targets import ClipTargets
from ausm_d2.training.teacher_forcing import HistoryNoise, draw_switch_times, preprocess


def worked_example() -> ClipTargets:
    """Five frames of 8x8, two instances: 0 visible in all of them, 1 in frames 2, 3 and 5 (counted from 1)."""
    masks = torch.zeros(1, 5, 2, 8, 8, dtype=torch.bool)
    for t in range(5):
        masks[0, t, 0, :4, :4] = True
    for t in (1, 2, 4):
        masks[0, t, 1, 4:, 4:] = True
    return ClipTargets(
        masks=masks,
        classes=torch.tensor([[3, 1]]),
        valid=torch.ones(1, 2, dtype=torch.bool),
        labelled=torch.ones(1, 5, dtype=torch.bool),
        exhaustive=torch.ones(1, dtype=torch.bool),
        prompted=torch.zeros(1, dtype=torch.bool),
    )


def test_preprocess_on_a_worked_example() -> None:
    # s_0 = 3 and s_1 = 2 as the paper counts; frames are counted from 0 here.
    forcing = preprocess(worked_example(), torch.tensor([[2, 1]]))
    # Row i is in A_{t-1} from the frame after s_i on.
    assert forcing.in_use[0].int().tolist() == [[0, 0], [0, 0], [0, 1], [1, 1], [1, 1]]
    # y_det^i_t = y^i_t for t <= s_i; instance 1 is not visible in the first frame.
    assert forcing.detect[0].int().tolist() == [[1, 0], [1, 1], [1, 0], [0, 0], [0, 0]]
    # y_trk^i_t for t > s_i, also where the object is hidden (frame 4, instance 1): its target is the empty mask.
    assert forcing.track[0].int().tolist() == forcing.in_use[0].int().tolist()
    # M_{t-1}: the mask of the frame before for rows in use, else nothing; empty where the object was hidden.
    filled = forcing.history[0].flatten(2).any(-1)
    assert filled.int().tolist() == [[0, 0], [0, 0], [0, 1], [1, 1], [1, 0]]
    assert torch.equal(forcing.history[0, 3, 0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(forcing.history[0, 3, 1], torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


def test_prompt_index_zero_gives_the_first_mask_as_history_of_the_first_frame() -> None:
    forcing = preprocess(worked_example(), torch.tensor([[-1, 5]]))
    assert forcing.in_use[0, :, 0].all() and not forcing.in_use[0, :, 1].any()
    assert torch.equal(forcing.history[0, 0, 0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert not forcing.detect[0, :, 0].any()
    assert forcing.detect[0, :, 1].int().tolist() == [0, 1, 1, 0, 1]


def test_frames_without_labels_and_padding_are_not_supervised() -> None:
    targets = worked_example()
    targets.labelled[0, 3] = False
    targets.valid[0, 1] = False
    forcing = preprocess(targets, torch.tensor([[1, 1]]))
    assert forcing.track[0, :, 0].int().tolist() == [0, 0, 1, 0, 1]
    assert not forcing.track[0, :, 1].any() and not forcing.detect[0, :, 1].any() and not forcing.in_use[0, :, 1].any()


def test_switch_times_are_uniform_over_visible_frames_or_the_first() -> None:
    visible = worked_example().visible.expand(3000, -1, -1)
    prompted = torch.arange(3000) % 2 == 1
    switch = draw_switch_times(visible, prompted=prompted, prompt_index="frame")
    assert set(switch[prompted, 0].tolist()) == {0} and set(switch[prompted, 1].tolist()) == {1}
    counts = torch.bincount(switch[~prompted, 1], minlength=5).tolist()
    assert counts[0] == counts[3] == 0
    assert all(abs(count - 500) < 80 for count in (counts[1], counts[2], counts[4]))  # 4 standard deviations
    zero = draw_switch_times(visible, prompted=prompted, prompt_index="zero")
    assert set(zero[prompted, 0].tolist()) == {-1} and set(zero[prompted, 1].tolist()) == {1}


def test_an_instance_that_is_never_visible_has_no_switch_time() -> None:
    visible = torch.zeros(2, 4, 1, dtype=torch.bool)
    switch = draw_switch_times(visible, prompted=torch.tensor([True, False]), prompt_index="zero")
    assert switch.tolist() == [[4], [4]]


def make_noise(**probabilities: float) -> HistoryNoise:
    return HistoryNoise(**{"morphology": 0.0, "shift": 0.0, "max_shift": 2, "drop": 0.0, "swap": 0.0, **probabilities})


def test_noise_kinds() -> None:
    masks = torch.zeros(1, 1, 2, 12, 12)
    masks[0, 0, 0, 4:8, 4:8] = 1
    masks[0, 0, 1, 2:4, 8:10] = 1
    used = torch.ones(1, 1, 2, dtype=torch.bool)
    assert torch.equal(make_noise()(masks, used), masks)
    assert make_noise(drop=1.0)(masks, used).sum() == 0
    sizes = {int(make_noise(morphology=1.0)(masks, used)[0, 0, 0].sum()) for _ in range(20)}
    assert sizes == {4, 36}  # eroded to 2x2, dilated to 6x6
    moved = [make_noise(shift=1.0)(masks, used)[0, 0, 0] for _ in range(20)]
    assert all(each.sum() == 16 for each in moved) and not all(torch.equal(each, masks[0, 0, 0]) for each in moved)
    swapped = {bool(torch.equal(make_noise(swap=1.0)(masks, used), masks.flip(2))) for _ in range(20)}
    assert True in swapped


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_noise_conserves_the_set_of_masks_when_it_only_swaps_and_leaves_unused_rows_empty(rows: int) -> None:
    masks = torch.zeros(4, 3, rows, 4, 8)
    for i in range(rows):
        masks[:, :, i, 0, i] = 1
    used = torch.rand(4, 3, rows) < 0.7
    masks = masks * used[..., None, None]
    noisy = make_noise(swap=0.6)(masks, used)
    assert torch.equal(noisy.sum(2), masks.sum(2))
    assert not noisy.flatten(3).any(-1)[~used].any()


def test_a_mask_that_is_given_enters_the_history_in_place_of_the_first_frames_own() -> None:
    targets = worked_example()
    targets.given = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    targets.given[0, 0, :, 4:] = True  # of object 0; object 1 is given as it is
    forcing = preprocess(targets, torch.tensor([[0, 1]]))
    assert forcing.history[0, :, 0].int().tolist() == [
        [[0, 0], [0, 0]], [[0, 1], [0, 1]], [[1, 0], [0, 0]], [[1, 0], [0, 0]], [[1, 0], [0, 0]],
    ]  # fmt: skip
    assert forcing.history[0, 2:, 1].int().tolist() == [[[0, 0], [0, 1]], [[0, 0], [0, 1]], [[0, 0], [0, 0]]]
    assert torch.equal(targets.masks[0, 1, 0, :4, :4], torch.ones(4, 4, dtype=torch.bool))  # the target stays


def test_noise_does_not_make_a_small_mask_vanish_or_leave_its_place() -> None:
    torch.manual_seed(0)
    history = torch.zeros(1, 400, 2, 16, 16)
    history[:, :, 0, 6:8, 6:8] = 1.0  # four cells: erosion would leave none, two cells of shift would leave its place
    history[:, :, 1, 2:12, 2:12] = 1.0
    noise = HistoryNoise(morphology=1.0, shift=1.0, max_shift=3, drop=0.0, swap=0.0)
    noisy = noise(history, torch.ones(1, 400, 2, dtype=torch.bool))
    assert (noisy[:, :, 0].flatten(2).sum(-1) >= 4).all()
    assert ((noisy * history)[:, :, 0].flatten(2).sum(-1) > 0).all()
    large = noisy[:, :, 1].flatten(2).sum(-1)
    assert large.min() <= 64 and large.max() >= 121  # a large one is eroded, dilated and moved as before
    assert (noisy[:, :, 1] - history[:, :, 1]).flatten(2).abs().amax(-1).all()
