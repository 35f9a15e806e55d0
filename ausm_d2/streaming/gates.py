# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Rules for unprompted tracks: which detections start none; which tracks are hidden, cropped or end.

The paper has one such rule, FG_THRESHOLD; the others are off unless a config enables them (TEST.AUSM). Prompted objects
are never affected.

Shape shorthand:
    D: channels; h, w: feature size at stride 8; H4, W4: mask size at stride 4
    N: leading slots that a step computes; Q: N + N_det, rows of the Pixel Decoder
    K: classes of the stream's label set
    R, S: masks
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.modeling.masks import winners
from ausm_d2.modeling.transfer import upload
from ausm_d2.streaming.settings import VideoSettings
from ausm_d2.streaming.slots import Slots
from ausm_d2.streaming.state import StreamState

_OUTSIDE = -20.0  # logit
_LEAST_REACH = 4  # cells: minimum of the reach
_ELSEWHERE = 4  # times the reach: a part that is farther away belongs to another object
_GONE = 5  # frames that a track was hidden: it must look more like itself to come back
_KEPT = 0.95  # of the sum of a track's appearances, per frame


def keep_within_reach(
    before: Tensor, state: StreamState, report: Tensor, logits: Tensor, settings: VideoSettings
) -> tuple[Tensor, Tensor, list[int | None]]:
    """REACH: keep only those parts of an unprompted track's mask that are near its previous mask, so that a track does
    not spread or jump to a new object. V detects nothing that a track's mask covers, so a part that is large
    (BIRTH_CELLS, half of what is kept) and four times as far away is a detection.

    Args:
        before: bool (N, H4, W4), M_{t-1}. A row without a mask may come back anywhere, in one place.
        state: after the step; its masks M_t are changed.
        report: (Q, K + 1), CPU.
        logits: (Q, H4, W4); may be changed in place: use what is returned.

    Returns:
        ``report``, where the last column is 0 for masks that are now empty, and ``logits``, changed like the masks,
        with a row more for each such part; and a None for each: no track ends.
    """
    found = (state.slots.in_use & ~state.slots.prompted)[: len(before)].nonzero()[:, 0]
    if not len(found):
        return report, logits, []
    rows = upload(found, before.device)
    old, new = before[rows].cpu().numpy(), state.masks[rows].cpu().numpy()  # device sync
    parts = [_near_and_elsewhere(*pair, settings.reach) for pair in zip(new, old, strict=True)]
    near, cut = np.stack([each for each, _ in parts]), np.stack([each for _, each in parts])
    kept_area, cut_area = near.sum((1, 2)), cut.sum((1, 2))
    apart = np.flatnonzero((kept_area > 0) & (2 * cut_area >= kept_area) & (cut_area >= settings.birth_cells))
    more_report = torch.cat([report, report[found[apart]]])
    more_logits = logits
    if len(apart):
        others = upload(torch.from_numpy(cut[apart]), before.device)
        more_logits = torch.cat([logits, logits[rows[apart]].masked_fill(~others, _OUTSIDE)])
    kept = upload(torch.from_numpy(near), before.device)
    far = state.masks[rows] & ~kept
    state.masks[rows] = kept
    more_logits[rows] = more_logits[rows].masked_fill(far, _OUTSIDE)
    more_report[found, -1] *= torch.from_numpy(near.any(axis=(1, 2)))
    return more_report, more_logits, [None] * len(apart)


def _near_and_elsewhere(mask: np.ndarray, before: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Connected components of a mask: those within reach of the previous mask (if it is empty, of the largest
    component), and the largest one of those four times as far away. Both are bool (H4, W4).
    """
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count == 1 or (count == 2 and ((mask & before).any() or not before.any())):
        return mask, np.zeros_like(mask)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # what is not in the mask
    if not before.any():
        before = parts == areas.argmax()
    distance = cv2.distanceTransform((~before).astype(np.uint8), cv2.DIST_L2, 3)
    nearest = np.array([distance[parts == i].min() for i in range(count)])
    limit = max(_LEAST_REACH, reach * np.count_nonzero(before) ** 0.5)
    areas[nearest <= _ELSEWHERE * limit] = 0
    return mask & (nearest <= limit)[parts], mask & (parts == areas.argmax()) & bool(areas.any())


def keep_main_parts(found: list[int], logits: Tensor, reach: float) -> None:
    """REACH: of the mask of each detection, keep only the largest part and those near it, so that one that covers a
    second object far away does not start a track of both.

    Args:
        found: rows of Q.
        logits: (Q, H4, W4): changed.
        reach: in units of the square root of the area of the largest part; at least 4 cells.
    """
    if not found or not reach:
        return
    rows = upload(torch.tensor(found), logits.device)
    masks = (logits[rows] > 0).cpu().numpy()  # device sync
    far = np.stack([mask & ~_near_and_elsewhere(mask, np.zeros_like(mask), reach)[0] for mask in masks])
    logits[rows] = logits[rows].masked_fill(upload(torch.from_numpy(far), logits.device), _OUTSIDE)


def hide_jumped(
    state: StreamState, report: Tensor, logits: Tensor, tracked: int, least: float
) -> tuple[Tensor, Tensor, list[int]]:
    """APPEARANCE: where the mask of an unprompted track looks unlike the track did until now, it has jumped to another
    object, often one that passes in front of it. The track is hidden. If it has been so for 5 frames, it would take the
    other object again and again: then its mask is a detection too.

    Args:
        state: after the step; its masks M_t and its appearances are changed.
        report: (Q, K + 1), CPU: its last column becomes 0 for the hidden rows.
        logits: (Q, H4, W4): changed like the masks.
        tracked: N.
        least: cosine similarity of the appearances; half as far from 1 for a track that was hidden for 5 frames.

    Returns:
        ``report`` and ``logits`` with a row more for each such detection, and the ids of their tracks: each ends if
        its row starts a new one.
    """
    slots = state.slots
    found = (slots.in_use & ~slots.prompted)[:tracked]
    found = (found & (report[:tracked, -1] > 0)).nonzero()[:, 0]
    if not len(found):
        return report, logits, []
    rows = upload(found, state.masks.device)
    now = appearance(state.masks[rows], state.x_prev)
    gone = state.frame_index - slots.last_seen[found] >= _GONE
    needed = upload(torch.where(gone, (1 + least) / 2, least), rows.device)
    alike = F.cosine_similarity(now, state.appearance[rows], dim=1) >= needed
    state.appearance[rows] = torch.where(alike[:, None], _KEPT * state.appearance[rows] + now, state.appearance[rows])
    there = alike.cpu()  # device sync
    if there.all():
        return report, logits, []
    hidden, other = rows[~alike], found[gone & ~there]
    more_report = torch.cat([report, report[other]])
    more_logits = torch.cat([logits, logits[upload(other, logits.device)]])
    more_report[found[~there], -1] = 0.0
    more_logits[hidden] = more_logits[hidden].masked_fill(state.masks[hidden], _OUTSIDE)
    state.masks[hidden] = False
    return more_report, more_logits, slots.track_ids[other].tolist()


def appearance(masks: Tensor, x: Tensor) -> Tensor:
    """The mean of X_t in each mask, minus that in the whole frame, as a vector of length 1.

    Args:
        masks: bool (R, H4, W4), none empty.
        x: (D, h, w) X_t.

    Returns:
        float32 (R, D).
    """
    cover = F.avg_pool2d(masks.float(), 2)  # part of each cell of stride 8
    inside = cover * (cover > cover.amax(dim=(1, 2), keepdim=True) / 2)  # without the border, which mixes objects
    x = x.float()
    mean = torch.einsum("rhw,dhw->rd", inside, x) / inside.sum(dim=(1, 2))[:, None]
    return F.normalize(mean - x.mean(dim=(1, 2)), dim=1)


def hide_unsure(probabilities: Tensor, visible: Tensor, state: StreamState, below: float) -> None:
    """Hide unprompted rows whose foreground probability is below HIDE_BELOW: clear their masks in M_t.

    Args:
        probabilities: float64 (Q, K).
        visible: bool (N), updated in place.
    """
    if below > 0:
        slots, tracked = state.slots, len(visible)
        unsure = probabilities[:tracked].sum(-1) < below
        unsure &= slots.in_use[:tracked] & ~slots.prompted[:tracked]
        visible &= ~unsure
        state.masks[upload(unsure.nonzero()[:, 0], state.masks.device)] = False


def ending(visible: Tensor, state: StreamState, settings: VideoSettings) -> list[int]:
    """Ids of unprompted tracks that end: duplicates of more confident ones, and those that hide before MIN_AGE.

    Args:
        visible: bool (N), in this frame.
    """
    slots, count = state.slots, len(visible)
    found = (slots.in_use & ~slots.prompted)[:count]
    ended = torch.zeros_like(found)
    if settings.min_age > 1:
        ended |= found & ~visible & (state.frame_index <= slots.due[:count])
    if settings.duplicate_overlap < 1:
        ended[_doubles(state.masks[:count], slots, settings.duplicate_overlap)] = True
    return slots.track_ids[:count][ended].tolist()


def share_out(state: StreamState, logits: Tensor, tracked: int) -> None:
    """EXCLUSIVE: a cell in several masks belongs to the row with the largest logit only, in M_t and in the result.

    Args:
        logits: (Q, H4, W4); changed in place.
        tracked: N.
    """
    masks, logits = state.masks[:tracked], logits[:tracked]
    owner = winners(torch.where(masks, logits, -torch.inf))
    lost = masks & (owner != torch.arange(tracked, device=owner.device)[:, None, None])
    masks &= ~lost
    logits.masked_fill_(lost, _OUTSIDE)


def distinct(found: list[int], logits: Tensor, tracked: Tensor, settings: VideoSettings) -> list[int]:
    """The detections that may start a track: large enough, and no duplicate of a tracked mask or of a more confident
    detection.

    Args:
        found: rows of Q, most confident first.
        logits: (Q, H4, W4).
        tracked: bool (R, H4, W4).
    """
    if not found or (settings.birth_iou >= 1 and settings.duplicate_overlap >= 1 and not settings.birth_cells):
        return found
    new, count = logits[upload(torch.tensor(found), logits.device)] > 0, len(found)
    large = new.flatten(1).sum(dim=1) >= settings.birth_cells
    double = shared(new, torch.cat([new, tracked])) > settings.duplicate_overlap
    double[:, :count] |= iou(new, new) > settings.birth_iou
    free = (large & ~double[:, count:].any(dim=1)).tolist()  # device sync
    double = double[:, :count].cpu()
    kept: list[int] = []
    for i in range(count):
        if free[i] and not double[i, kept].any():
            kept.append(i)
    return [found[i] for i in kept]


def delay(probabilities: Tensor, added: Tensor, settings: VideoSettings) -> Tensor:
    """Frames until new tracks are returned: MIN_AGE - 1, or 0 for confident ones (AT_ONCE).

    Args:
        probabilities: float64 (R, K), CPU.
        added: bool (R): started by a row that these rules added to Q; never at once.

    Returns:
        int64 (R).
    """
    return ((probabilities.sum(-1) < settings.at_once) | added) * (settings.min_age - 1)


def shared(masks: Tensor, others: Tensor) -> Tensor:
    """Intersection over the smaller area: bool (R, H4, W4), (S, H4, W4) -> float (R, S)."""
    first, second = masks.flatten(1).float(), others.flatten(1).float()
    smaller = torch.minimum(first.sum(dim=1)[:, None], second.sum(dim=1)[None])
    return first @ second.T / smaller.clamp(min=1)


def iou(masks: Tensor, others: Tensor) -> Tensor:
    """Intersection over union: bool (R, H4, W4), (S, H4, W4) -> float (R, S)."""
    first, second = masks.flatten(1).float(), others.flatten(1).float()
    both = first @ second.T
    return both / (first.sum(dim=1)[:, None] + second.sum(dim=1) - both).clamp(min=1)


def _doubles(masks: Tensor, slots: Slots, most: float) -> list[int]:
    """Slots of unprompted tracks whose :func:`shared` with a more confident one exceeds ``most``.

    Args:
        masks: bool (N, H4, W4), of the first N slots.
    """
    confidence = slots.class_sums.sum(dim=1) / slots.predicted.clamp(min=1)
    order = torch.where(slots.prompted, torch.inf, confidence)[: len(masks)].argsort(descending=True, stable=True)
    overlap = (shared(masks, masks) > most).cpu()  # device sync
    kept: list[int] = []
    ended: list[int] = []
    for slot in order[slots.in_use[order]].tolist():
        double = not slots.prompted[slot] and bool(overlap[slot, kept].any())
        (ended if double else kept).append(slot)
    return ended
