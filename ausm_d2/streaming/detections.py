# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Selects the rows of V that become tracks: D of Alg. 1.

Shape shorthand:
    H4, W4: mask size at stride 4 of the padded input
    N: leading slots that include all slots in use; Q: N + N_det, rows of the Pixel Decoder
    K: classes
    R: masks
"""

from __future__ import annotations

import torch
from torch import Tensor

from ausm_d2.modeling.transfer import upload
from ausm_d2.streaming.gates import distinct, iou, keep_main_parts
from ausm_d2.streaming.settings import VideoSettings

SAME = 0.5  # a detection with a larger mask IoU with an object of another stream is that object


def new_tracks(
    probabilities: Tensor,
    scores: Tensor,
    visible: Tensor,
    mask_logits: Tensor,
    masks: Tensor,
    elsewhere: Tensor | None,
    *,
    tracked: int,
    settings: VideoSettings,
) -> list[int]:
    """Rows of Q that start a track, most confident first.

    Args:
        probabilities: float64 (Q, K), CPU.
        scores: float64 (Q, K), CPU, by TEST.AUSM.TRACK_SCORE.
        visible: bool (Q), CPU.
        mask_logits: (Q, H4, W4); REACH changes the rows of detections.
        masks: bool (R, H4, W4) of the stream's own objects.
        elsewhere: bool (R, H4, W4) of objects that other streams of the video track.
        tracked: N.
    """
    found = confident(probabilities, scores, visible, tracked, settings.fg_threshold)
    keep_main_parts(found, mask_logits, settings.reach)
    found = apart(found, mask_logits, masks, settings.birth_iou)
    if elsewhere is not None:
        found = apart(found, mask_logits, elsewhere, min(settings.birth_iou, SAME))
    return distinct(found, mask_logits, masks, settings)


def confident(probabilities: Tensor, scores: Tensor, visible: Tensor, tracked: int, threshold: float) -> list[int]:
    """Rows of V (as rows of Q) that are foreground and visible, most confident first.

    Args:
        probabilities: float64 (Q, K), CPU.
        scores: float64 (Q, K), CPU, by which they are ordered.
        visible: bool (Q), CPU.
        tracked: N.
        threshold: minimum foreground probability.
    """
    foreground = probabilities[tracked:].sum(-1)
    found = ((foreground >= threshold) & visible[tracked:]).nonzero()[:, 0]
    found = found[scores[tracked:].sum(-1)[found].argsort(descending=True)]
    return (found + tracked).tolist()


def apart(found: list[int], mask_logits: Tensor, others: Tensor, limit: float) -> list[int]:
    """The detections (rows of Q) whose mask IoU with each of some masks, bool (R, H4, W4), is at most ``limit``."""
    if not found or not len(others) or limit >= 1:
        return found
    rows = upload(torch.tensor(found), mask_logits.device)
    alone = (iou(mask_logits[rows] > 0, others) <= limit).all(dim=1).tolist()  # device sync
    return [row for row, is_new in zip(found, alone, strict=True) if is_new]
