# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Training on the model's own masks: M_t from its predictions in place of the ground truth (docs/deviations.md, 10).

Shape shorthand:
    B: clips
    N: rows of A
    H4, W4: mask size, stride 4
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..modeling.history import masks_at_stride4
from ..modeling.pixel_decoder import Predictions
from .criterion import SetCriterion
from .matcher import PointTargets
from .targets import ClipTargets
from .teacher_forcing import TeacherForcing


@torch.no_grad()
def own_history(
    t: int,
    predictions: Predictions,
    forcing: TeacherForcing,
    targets: ClipTargets,
    prompted: Tensor,
    *,
    criterion: SetCriterion,
) -> Tensor:
    """M_t of the model's own making: row i's binary mask, or at s_i that of its matched detection.

    Args:
        t: the frame (counted from 0) that ``predictions`` are of.
        predictions: the last layer's, for B frames.
        forcing, targets: of the clips.
        prompted: bool (B); a given mask enters as it is.
        criterion: whose matcher pairs detections with instances.

    Returns:
        (B, N, H4, W4).
    """
    rows = targets.classes.shape[1]
    masks = (predictions.mask_logits > 0).float()
    enters = (forcing.switch == t) & forcing.detect[:, t]
    matched = masks_at_stride4(targets.masks[:, t]) * prompted[:, None, None, None]
    found = enters & ~prompted[:, None]
    if found.any():
        # All instances that can be detected take part, as they do in the loss.
        points = PointTargets(targets.masks[:, t], forcing.detect[:, t], num_points=criterion.num_points)
        clip, query, instance = criterion.matcher(
            predictions.class_logits[:, rows:], predictions.mask_logits[:, rows:], targets.classes, points
        )
        keep = found[clip, instance]
        clip, query, instance = clip[keep], query[keep], instance[keep]
        matched[clip, instance] = masks[clip, rows + query]
    history = torch.where(enters[..., None, None], matched, masks[:, :rows])
    return history * forcing.in_use[:, t + 1, :, None, None]
