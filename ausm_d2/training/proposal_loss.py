# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Losses on the per-cell predictions of the proposals, from which V is made (docs/deviations.md, 22).

An object to be detected owns the cells around the centre of its box, weighted by a Gaussian of the box's size, as in
TTFNet (arXiv 1909.00700). Two losses are taken on these cells: GIoU on the predicted box (arXiv 1902.09630), and the
quality focal loss on the heat (arXiv 2006.04388), whose target is the Gaussian times the square root of the predicted
box's IoU.

Shape shorthand:
    BT: frames
    N: instances
    h, w: feature size at stride 8
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures.boxes import Boxes, matched_pairwise_iou
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from ausm_d2.modeling.masks import mask_boxes
from ausm_d2.modeling.proposals import CellPredictions
from ausm_d2.training.targets import FrameTargets

_SPREAD = 0.15  # standard deviation of the Gaussian, in sides of the box
_REACH = 0.1  # cells of a lower weight are background
_HEAT_WEIGHT, _BOX_WEIGHT = 2.0, 2.0


def cell_losses(frames: Sequence[tuple[CellPredictions, FrameTargets]]) -> Tensor:
    """Sums over all frames, (3): heat loss, box loss, number of objects to be detected."""
    sums = []
    for cells, targets in frames:
        boxes = mask_boxes(targets.masks).float() / 8
        known = (targets.labelled & targets.exhaustive).float()
        neither = targets.visible & ~targets.track & ~targets.detect  # ignored: too small (TRAIN.DETECT_CELLS)
        for i in range(len(cells.heat)):
            weight = known[i] * ~_covered(boxes[i][neither[i]], cells.heat[i])
            sums.append(_frame(cells.heat[i], cells.boxes[i], boxes[i][targets.detect[i]], weight))
    return torch.stack(sums).sum(dim=0)


def _covered(boxes: Tensor, heat: Tensor) -> Tensor:
    """Bool (h, w): cells that one of the boxes (objects, 4) touches."""
    y, x = (torch.arange(side, device=heat.device) for side in heat.shape)
    rows = (y < boxes[:, 3:]) & (y + 1 > boxes[:, 1:2])
    columns = (x < boxes[:, 2:3]) & (x + 1 > boxes[:, :1])
    return (rows[:, :, None] & columns[:, None, :]).any(dim=0)


def _frame(heat: Tensor, boxes: Tensor, wanted: Tensor, background: Tensor) -> Tensor:
    """The sums of :func:`cell_losses` for one frame, (3).

    Args:
        heat: (h, w) logits.
        boxes: (h, w, 4).
        wanted: (objects, 4) true boxes.
        background: (h, w) weights of the cells that no object owns.
    """
    probability = heat.sigmoid()
    target, weight = torch.zeros_like(heat), background.clone()
    box_loss = heat.sum() * 0
    if len(wanted):
        gaussian, owner = _owners(wanted, (heat.shape[0], heat.shape[1]))
        owned = gaussian > 0
        gaussian, owner = gaussian[owned], owner[owned]
        found, true = boxes[owned], wanted[owner]
        iou = matched_pairwise_iou(Boxes(found.detach()), Boxes(true))
        total = torch.zeros(len(wanted), device=heat.device).index_add_(0, owner, gaussian)[owner].clamp(min=1e-6)
        target[owned] = gaussian * iou.clamp(min=0.05).sqrt()
        weight[owned] = total.rsqrt()  # so that large objects, which own more cells, do not dominate
        box_loss = (generalized_box_iou_loss(found, true) * gaussian / total).sum()
    bce = F.binary_cross_entropy_with_logits(heat, target, reduction="none")
    heat_loss = (bce * (target - probability).square() * weight).sum()
    return torch.stack([_HEAT_WEIGHT * heat_loss, _BOX_WEIGHT * box_loss, heat.new_tensor(float(len(wanted)))])


def _owners(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(objects, 4) boxes -> (h, w) Gaussian weights, 0 for background, and int64 (h, w) index of each cell's owner, the
    object with the largest weight there."""
    limit = boxes.new_tensor([size[1] - 1, size[0] - 1])
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2).floor().clamp(min=0).minimum(limit) + 0.5
    spread = (_SPREAD * (boxes[:, 2:] - boxes[:, :2])).clamp(min=0.4)
    y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in size)
    along_x = (-((x - centre[:, :1]) ** 2) / (2 * spread[:, :1] ** 2)).exp()
    along_y = (-((y - centre[:, 1:]) ** 2) / (2 * spread[:, 1:] ** 2)).exp()
    gaussian = along_y[:, :, None] * along_x[:, None, :]
    best, owner = torch.where(gaussian > _REACH, gaussian, 0.0).max(dim=0)
    return best, owner
