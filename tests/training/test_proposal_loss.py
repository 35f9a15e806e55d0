# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from ausm_d2.modeling.proposals import CellPredictions
from ausm_d2.training.proposal_loss import cell_losses
from ausm_d2.training.targets import FrameTargets


def frame(*boxes: tuple[int, int, int, int], exhaustive: bool = True) -> FrameTargets:
    """Filled boxes (x0, y0, x1, y1 in pixels), all to be detected."""
    masks = torch.zeros(1, max(1, len(boxes)), 64, 96, dtype=torch.bool)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        masks[0, i, y0:y1, x0:x1] = True
    there = masks.flatten(2).any(dim=-1)
    flag = torch.tensor([True])
    classes = torch.zeros(there.shape, dtype=torch.int64)
    return FrameTargets(masks, classes, there, there & False, there.clone(), flag, torch.tensor([exhaustive]))


def cells(heat: float, box: tuple[float, float, float, float]) -> CellPredictions:
    """The same prediction in every cell of a frame of 64 x 96 pixels; masks are boxes."""
    return CellPredictions(
        torch.full((1, 8, 12), float(heat)),
        torch.tensor(box).expand(1, 8, 12, 4).clone(),
        torch.zeros(1, 8, 12, 1),
        torch.ones(1, 1, 8, 12),
        torch.tensor([4.0]),
    )


def test_a_box_that_fits_costs_nothing_and_a_wrong_one_does() -> None:
    targets = frame((16, 8, 48, 40))
    assert cell_losses([(cells(0, (2, 1, 6, 5)), targets)])[1] < 1e-5
    assert cell_losses([(cells(0, (3, 1, 6, 5)), targets)])[1] > 0.2


def test_heat_is_wanted_at_the_centre_and_nowhere_else() -> None:
    targets = frame((16, 8, 48, 40))
    one = cells(-6, (2, 1, 6, 5))

    def loss(row: int, column: int) -> float:
        there = one.heat.clone()
        there[0, row, column] = 3.0
        return float(cell_losses([(one._replace(heat=there), targets)])[0])

    assert loss(3, 4) < loss(7, 11) - 1


def test_without_exhaustive_labels_boxes_and_masks_are_learned_and_no_heat() -> None:
    sure = cells(5.0, (0, 0, 1, 1))
    assert cell_losses([(sure, frame(exhaustive=True))])[0] > 10
    assert cell_losses([(sure, frame(exhaustive=False))])[0] == 0
    partly = cell_losses([(cells(-5.0, (1, 1, 2, 2)), frame((16, 8, 48, 40), exhaustive=False))])
    assert partly[0] == 0 and partly[1] > 0.2 and partly[2] > 0.2


def test_the_coarse_mask_is_that_of_the_best_cell() -> None:
    targets = frame((16, 8, 48, 40))
    targets.masks[..., 40:48] = False  # an L of the box's left three quarters
    targets.masks[:, :, 8:24, 32:] = False
    shape = torch.nn.functional.avg_pool2d(targets.masks[:, :1].float(), 8)
    box = cells(0, (2, 1, 6, 5))
    right, wrong = (box._replace(prototypes=sign * 20 * (shape - 0.5), weights=box.weights + 1) for sign in (1, -1))
    losses = [float(cell_losses([(each, targets)])[2]) for each in (right, box, wrong)]
    assert losses[0] < 0.6 * losses[1] < losses[2]
    one = right._replace(weights=torch.zeros_like(right.weights), boxes=box.boxes + torch.tensor([0.0, 0, 0, 1]))
    one.boxes[0, 3, 3], one.weights[0, 3, 3] = torch.tensor([2.0, 1, 6, 5]), 1.0  # in the middle
    assert abs(float(cell_losses([(one, targets)])[2]) - losses[0]) < 0.05


def test_an_object_that_is_neither_wanted_nor_tracked_is_no_background() -> None:
    targets = frame((16, 8, 48, 40))
    hot = torch.full((1, 8, 12), -8.0)
    hot[0, 3, 4] = 5.0
    sure = cells(0, (2, 1, 6, 5))._replace(heat=hot)
    targets.detect[:] = False
    assert cell_losses([(sure, targets)])[0] < 0.1
    targets.track[:] = True
    assert cell_losses([(sure, targets)])[0] > 1
