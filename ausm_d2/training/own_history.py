# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Training on the model's own masks: M_t from its predictions instead of the ground truth (docs/deviations.md, 10).

``TRAIN.MODE: rollout`` feeds each frame's masks to the next frame. The parallel form predicts whole clips several times
instead (``TRAIN.OWN_PASSES``): after k passes a history mask is the result of k successive predictions.

Shape shorthand:
    B: clips; T: frames of a clip
    N: rows of A
    D: channels
    h, w: feature size at stride 8; h_l, w_l: of level l; H4, W4: mask size at stride 4
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
    """M_t from the model's predictions: the binary mask of row i, at s_i that of the detection matched to instance i.

    Args:
        t: index of the predicted frame, from 0; not the last frame.
        predictions: of the last decoder layer, for frame t of the B clips.
        forcing, targets: of the B clips.
        prompted: bool (B): prompted clips, whose given masks enter M unchanged.
        criterion: its matcher assigns instances to detections.

    Returns:
        (B, N, H4, W4).
    """
    rows = targets.classes.shape[1]
    masks = (predictions.mask_logits > 0).float()
    enters = (forcing.switch == t) & forcing.detect[:, t]
    matched = masks_at_stride4(targets.masks[:, t] if t else targets.first) * prompted[:, None, None, None]
    found = enters & ~prompted[:, None]
    if found.any():
        # All instances to be detected compete, as in the loss.
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
    """The arguments of :meth:`AUSMNetwork.predict` for B clips of T frames, except the history."""

    x: Tensor  # (B, T, D, h, w) X_t
    mask_features: Tensor  # (B, T, D, H4, W4)
    levels: Sequence[Tensor]  # (B, T, D, h_l, w_l) all levels of the frame encoder, coarsest first
    x_prev: Tensor  # (B, T, D, h, w) X_{t-1}
    ids: Tensor  # (B, N, D)
    in_use: Tensor  # bool (B, T, N)
    label_sets: Sequence[str]  # one per clip
    pyramid: Tensor | None = None  # (B, T, D, h, w), if V is made from proposals

    def compress(
        self, network: AUSMNetwork, history: Tensor, first: int, last: int, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Memory | None]:
        """:meth:`AUSMNetwork.compress` for frames ``first`` to ``last`` - 1. ``history`` covers all T frames."""
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
    """M_{t-1} of all frames after predicting the clips ``passes`` times, each time with the last masks as history.

    In the frame where a row enters A its mask is not replaced: a detected object starts from its true mask (in
    :func:`own_history` from that of its detection).

    Each pass computes only what can change. The network is causal, so each pass makes the history of one more frame
    final; the next pass starts after it, from the memory saved there. The last frame, and the frames before the first
    row is tracked, need no prediction.

    Args:
        inputs: B clips of T frames.
        history: (B, T, N, H4, W4), of the first pass.
        passes: number of predictions.

    Returns:
        (B, T, N, H4, W4).
    """
    frames = history.shape[1]
    tracked = inputs.in_use[:, :-1] & inputs.in_use[:, 1:]  # row i is in A at frame t and at frame t + 1
    first = next((t for t, any_row in enumerate(tracked.any(dim=2).any(dim=0).tolist()) if any_row), frames)
    size = (8 * inputs.x.shape[-2], 8 * inputs.x.shape[-1])
    start, memory = 0, network.initial_memory(size, clips=len(history), dtype=inputs.x.dtype)
    for _ in range(passes):
        # Predict frames ``first`` .. T - 2. The prediction of frame ``first`` is final; its memory is saved.
        if first >= frames - 1:
            break
        f, rows, saved = inputs.compress(network, history, start, first + 1, memory)
        if first + 1 < frames - 1:
            f_after, rows_after, _ = inputs.compress(network, history, first + 1, frames - 1, saved)
            f, rows = torch.cat([f, f_after], dim=1), torch.cat([rows, rows_after], dim=1)
        at = slice(first, frames - 1)
        (predictions,) = network.decode(
            x=inputs.x[:, at],
            f=f[:, first - start :],
            mask_features=inputs.mask_features[:, at],
            levels=[level[:, at] for level in inputs.levels],
            pyramid=None if inputs.pyramid is None else inputs.pyramid[:, at],
            rows=rows[:, first - start :],
            in_use=inputs.in_use[:, at],
            label_sets=inputs.label_sets,
            intermediate=False,
        )
        own = (predictions.mask_logits[:, : history.shape[2]] > 0).float().unflatten(0, (len(history), -1))
        changed = torch.where(tracked[:, at, :, None, None], own, history[:, first + 1 :])
        history = torch.cat([history[:, : first + 1], changed], dim=1)
        assert saved is not None
        start, first, memory = first + 1, first + 1, saved
    return history
