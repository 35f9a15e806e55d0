# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Losses on the per-cell predictions of the proposals, from which V is made (docs/deviations.md, 22).

An object to be detected owns the cells around the centre of its box, weighted by a Gaussian of the box's size, as in
TTFNet (arXiv 1909.00700). Three losses are taken on these cells: GIoU on the predicted box (arXiv 1902.09630), the
quality focal loss on the heat (arXiv 2006.04388), whose target is the Gaussian times the square root of the predicted
box's IoU, and cross-entropy and dice on the coarse mask of the object's best cell. Frames whose labels are not
exhaustive have no heat loss.

Shape shorthand:
    BT: frames
    N: instances
    h, w: feature size at stride 8; H4, W4: mask size at stride 4; H_pad, W_pad: padded image size in pixels
    P: prototypes
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures.boxes import Boxes, matched_pairwise_iou
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from ausm_d2.modeling.masks import mask_boxes, masks_at_stride4
from ausm_d2.modeling.proposals import CellPredictions, coarse_masks
from ausm_d2.training.targets import FrameTargets

_SPREAD = 0.15  # standard deviation of the Gaussian, in sides of the box
_REACH = 0.1  # cells of a lower weight are background
_HEAT_WEIGHT, _BOX_WEIGHT, _MASK_WEIGHT = 2.0, 2.0, 2.0


def cell_losses(frames: Sequence[tuple[CellPredictions, FrameTargets]]) -> Tensor:
    """Sums over all frames, (4): heat, box and mask loss, number of objects to be detected."""
    sums = []
    for cells, targets in frames:
        boxes = mask_boxes(targets.masks).float() / 8
        known = (targets.labelled & targets.exhaustive).float()
        neither = targets.visible & ~targets.track & ~targets.detect  # ignored: too small (TRAIN.DETECT_CELLS)
        for i in range(len(cells.heat)):
            weight = known[i] * ~_touched(boxes[i][neither[i]], cells.heat[i].shape).any(dim=0)
            frame = CellPredictions(*(each[i] for each in cells))
            wanted = targets.detect[i]
            sums.append(_frame(frame, boxes[i][wanted], targets.masks[i][wanted], weight, known[i]))
    return torch.stack(sums).sum(dim=0)


def _touched(boxes: Tensor, size: tuple[int, ...]) -> Tensor:
    """(objects, 4) boxes in cells -> bool (objects, *size): the cells that each touches."""
    y, x = (torch.arange(side, device=boxes.device) for side in size)
    rows = (y < boxes[:, 3:]) & (y + 1 > boxes[:, 1:2])
    columns = (x < boxes[:, 2:3]) & (x + 1 > boxes[:, :1])
    return rows[:, :, None] & columns[:, None, :]


def _frame(cells: CellPredictions, wanted: Tensor, masks: Tensor, background: Tensor, known: Tensor) -> Tensor:
    """The sums of :func:`cell_losses` for one frame, (4).

    Args:
        cells: predictions of the frame, without the axis BT.
        wanted: (objects, 4) true boxes.
        masks: bool (objects, H_pad, W_pad) true masks.
        background: (h, w) weights of the cells that no object owns.
        known: weight of the cells that are owned.
    """
    heat = cells.heat
    probability = heat.sigmoid()
    target, weight = torch.zeros_like(heat), background.clone()
    box_loss, mask_loss = heat.sum() * 0, heat.sum() * 0
    if len(wanted):
        gaussian, owner = _owners(wanted, (heat.shape[0], heat.shape[1]))
        owned = gaussian > 0
        gaussian, owner = gaussian[owned], owner[owned]
        found, true = cells.boxes[owned], wanted[owner]
        iou = matched_pairwise_iou(Boxes(found.detach()), Boxes(true))
        total = torch.zeros(len(wanted), device=heat.device).index_add_(0, owner, gaussian)[owner].clamp(min=1e-6)
        target[owned] = gaussian * iou.clamp(min=0.05).sqrt()
        weight[owned] = total.rsqrt() * known  # so that large objects, which own more cells, do not dominate
        box_loss = (generalized_box_iou_loss(found, true) * gaussian / total).sum()
        mask_loss = _mask_loss(cells, owned.nonzero(), owner, gaussian * (iou + 0.1), masks_at_stride4(masks))
    bce = F.binary_cross_entropy_with_logits(heat, target, reduction="none")
    heat_loss = (bce * (target - probability).square() * weight).sum()
    count = heat.new_tensor(float(len(wanted)))
    return torch.stack([_HEAT_WEIGHT * heat_loss, _BOX_WEIGHT * box_loss, _MASK_WEIGHT * mask_loss, count])


def _mask_loss(cells: CellPredictions, places: Tensor, owner: Tensor, fit: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy and dice loss of the coarse masks, summed over objects. An object's mask is that of the owned cell
    with the largest ``fit``.

    Args:
        places: int64 (R, 2) owned cells, row and column.
        owner: int64 (R) the object that owns each.
        fit: (R) above 0.
        masks: (objects, H4, W4) of 0 and 1.
    """
    fits = torch.zeros(len(masks), len(fit), device=fit.device)
    fits[owner, torch.arange(len(fit), device=fit.device)] = fit
    best, cell = fits.max(dim=1)
    objects = best.nonzero()[:, 0]  # an object may own no cell
    row, column = places[cell[objects]].unbind(1)
    boxes = cells.boxes[row, column].detach()
    one = CellPredictions(*(each[None] for each in cells))
    size = (masks.shape[-2], masks.shape[-1])
    logits = coarse_masks(one, boxes[None], cells.weights[row, column][None], size)[0]
    target = masks[objects]
    # Near the object only: far cells are settled by the box.
    near = _near(target)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * near
    probability = logits.sigmoid() * near
    dice = 1 - (2 * (probability * target).sum((1, 2)) + 1) / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)
    return (bce.sum((1, 2)) / near.sum((1, 2)).clamp(min=1) + dice).sum()


def _near(masks: Tensor) -> Tensor:
    """(objects, H4, W4) of 0 and 1 -> 1 in the box of each mask, enlarged by half its extent and at least 2 cells."""
    boxes = mask_boxes(masks > 0).float()
    margin = ((boxes[:, 2:] - boxes[:, :2]) / 2).clamp(min=2)
    enlarged = torch.cat([boxes[:, :2] - margin, boxes[:, 2:] + margin], dim=1)
    return _touched(enlarged, masks.shape[1:]).float()


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
