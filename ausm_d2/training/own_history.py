# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Training on the model's own masks: M_t from its predictions in place of the ground truth (docs/deviations.md, 10).

Frame by frame (``TRAIN.MODE: rollout``) every mask is made of the one before it. In the parallel form whole clips are
predicted again and again instead (``TRAIN.OWN_PASSES``): after k passes the history is k steps away from the truth.

Shape shorthand:
    B: clips
    T: frames of a clip
    N: rows of A
    H4, W4: mask size, stride 4
"""

from __future__ import annotations

import torch
from torch import Tensor

from ausm_d2.modeling.masks import masks_at_stride4
from ausm_d2.modeling.pixel_decoder import Predictions
from ausm_d2.training.criterion import SetCriterion
from ausm_d2.training.matcher import PointTargets
from ausm_d2.training.targets import ClipTargets
from ausm_d2.training.teacher_forcing import TeacherForcing


@torch.no_grad()
def own_history(
    t: int,
    predictions: Predictions,
    *,
    forcing: TeacherForcing,
    targets: ClipTargets,
    prompted: Tensor,
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


@torch.no_grad()
def history_of_pass(predictions: Predictions, forcing: TeacherForcing) -> Tensor:
    """M_{t-1} of all frames at once, from predictions that were made of another history.

    A row's mask of the frame before is its own prediction, unless the row began there: then it stays as it is, so that
    a found object begins with its true mask (in :func:`own_history` with that of its detection).

    Args:
        predictions: the last layer's, over B * T frames.
        forcing: whose history they were made of.

    Returns:
        (B, T, N, H4, W4).
    """
    batch, frames, rows = forcing.in_use.shape
    own = (predictions.mask_logits[:, :rows] > 0).float().unflatten(0, (batch, frames)).roll(1, dims=1)
    followed = forcing.in_use.roll(1, dims=1) & forcing.in_use  # in the frame before, and now
    followed[:, 0] = False
    return torch.where(followed[..., None, None], own, forcing.history)
