# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Training on the model's own masks: M_t from its predictions in place of the ground truth (docs/deviations.md, 10).

Frame by frame (``TRAIN.MODE: rollout``) every mask is made of the one before it. In the parallel form whole clips are
predicted again and again instead (``TRAIN.OWN_PASSES``): after k passes the history is k steps away from the truth.

Shape shorthand:
    B: clips
    T: frames of a clip
    N: rows of A
    D: channels
    h, w: feature size, stride 8
    H4, W4: mask size, stride 4
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ausm_d2.modeling.masks import masks_at_stride4
from ausm_d2.modeling.network import AUSMNetwork, Memory
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
    matched = masks_at_stride4(targets.masks[:, t] if t else targets.first) * prompted[:, None, None, None]
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


@dataclass
class ClipInputs:
    """What :meth:`AUSMNetwork.predict` takes of B clips of T frames, but for the history."""

    x: Tensor  # (B, T, D, h, w) X_t
    mask_features: Tensor  # (B, T, D, H4, W4)
    levels: Sequence[Tensor]  # (B, T, D, h_l, w_l) all levels of the frame encoder, coarsest first
    x_prev: Tensor  # (B, T, D, h, w) X_{t-1}
    ids: Tensor  # (B, N, D)
    in_use: Tensor  # bool (B, T, N)
    label_sets: Sequence[str]  # B

    def compress(
        self, network: AUSMNetwork, history: Tensor, first: int, last: int, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Memory | None]:
        """:meth:`AUSMNetwork.compress` of frames ``first`` to ``last`` - 1, whose history is given for all T."""
        at = slice(first, last)
        return network.compress(
            x_prev=self.x_prev[:, at],
            ids=self.ids,
            in_use=self.in_use[:, at],
            history=history[:, at],
            memory=memory,
        )


@torch.no_grad()
def history_after_passes(network: AUSMNetwork, inputs: ClipInputs, history: Tensor, passes: int) -> Tensor:
    """M_{t-1} of all frames after the clips were predicted ``passes`` times, each time on the masks of the time before.

    A row's mask of the frame before is its own prediction, unless the row began there: then it stays as it is, so that
    a found object begins with its true mask (in :func:`own_history` with that of its detection).

    Only what may differ from the pass before is computed. No frame sees a later one, so with every pass one frame more
    has the masks it will keep, and the next pass goes on after it, from the memory it left. The predictions of the last
    frame, and those before any row is followed, enter no history.

    Args:
        inputs: of B clips of T frames.
        history: (B, T, N, H4, W4), of the first pass.
        passes: how many.

    Returns:
        (B, T, N, H4, W4).
    """
    frames = history.shape[1]
    followed = inputs.in_use[:, :-1] & inputs.in_use[:, 1:]  # row i is in A at frame t and at frame t + 1
    first = next((t for t, any_row in enumerate(followed.any(dim=2).any(dim=0).tolist()) if any_row), frames)
    size = (8 * inputs.x.shape[-2], 8 * inputs.x.shape[-1])
    begun, memory = 0, network.initial_memory(size, clips=len(history), dtype=inputs.x.dtype)
    for _ in range(passes):
        # Frame ``first`` is predicted for the last time now, the frames from it to the one before the last once more.
        if first >= frames - 1:
            break
        f, rows, kept = inputs.compress(network, history, begun, first + 1, memory)
        if first + 1 < frames - 1:
            f_after, rows_after, _ = inputs.compress(network, history, first + 1, frames - 1, kept)
            f, rows = torch.cat([f, f_after], dim=1), torch.cat([rows, rows_after], dim=1)
        at = slice(first, frames - 1)
        (predictions,) = network.decode(
            x=inputs.x[:, at],
            f=f[:, first - begun :],
            mask_features=inputs.mask_features[:, at],
            levels=[level[:, at] for level in inputs.levels],
            rows=rows[:, first - begun :],
            in_use=inputs.in_use[:, at],
            label_sets=inputs.label_sets,
            intermediate=False,
        )
        own = (predictions.mask_logits[:, : history.shape[2]] > 0).float().unflatten(0, (len(history), -1))
        changed = torch.where(followed[:, at, :, None, None], own, history[:, first + 1 :])
        history = torch.cat([history[:, : first + 1], changed], dim=1)
        assert kept is not None
        begun, first, memory = first + 1, first + 1, kept
    return history
