# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Refines coarse masks: the network sees the frame again, and its prediction replaces the coarse mask.

Shape shorthand:
    H, W: size of the frames in pixels
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from ausm_d2.masks.drawn import click_radius
from ausm_d2.masks.parts import label_parts
from ausm_d2.streaming.ahead import EncodedFrame
from ausm_d2.streaming.groups import GroupedStream
from ausm_d2.streaming.prompts import Drawn

logger = logging.getLogger(__name__)

_CANDIDATE = 0.1  # minimum foreground probability of detections that are considered
_BETTER = 0.05  # minimum gain in fit for a detection to replace the refined mask
_FITS = 0.3  # minimum fit; below it the coarse mask is kept


def refine(stream: GroupedStream, frame: EncodedFrame, drawn: Mapping[int, Drawn]) -> dict[int, np.ndarray]:
    """The masks of objects that are prompted at the latest frame of a stream. The stream is not changed.

    The coarse mask enters the history of a copy of the stream, which processes the frame again. A detection of that
    frame replaces the result if it agrees better with the prompts (:meth:`Drawn.fit`).

    Args:
        stream: after the frame.
        frame: by :meth:`GroupedStream.encoded`.
        drawn: prompts by object id.

    Returns:
        bool (H, W) by object id.
    """
    coarse = {object_id: each for object_id, each in drawn.items() if not each.exact}
    if not coarse:
        return {object_id: each.mask for object_id, each in drawn.items()}
    again = stream.fork()
    again.detect = False
    again.add({object_id: each.mask for object_id, each in drawn.items()})
    own = _masks(again, frame)
    found = stream.finding(fg_threshold=min(_CANDIDATE, stream.settings.fg_threshold))
    followed = set(stream.track_ids)
    detections = [mask for track_id, mask in _masks(found, frame).items() if track_id not in followed]
    masks = {}
    for object_id, each in drawn.items():
        masks[object_id] = each.mask if each.exact else _choose(object_id, each, own.get(object_id), detections)
    return masks


def _masks(stream: GroupedStream, frame: EncodedFrame) -> dict[int, np.ndarray]:
    """Step the stream: the masks of all rows, bool (H, W), by track id."""
    output = stream.step(frame)
    masks = (stream.logits(output) > 0).cpu().numpy()
    return dict(zip(output.track_ids, masks, strict=True))


def _choose(object_id: int, drawn: Drawn, own: np.ndarray | None, detections: list[np.ndarray]) -> np.ndarray:
    best, fit = drawn.mask, 0.0
    if own is not None:
        best = _marked_parts(drawn, own)
        fit = drawn.fit(best)
    for detection in detections:
        mask = _marked_parts(drawn, detection)
        value = drawn.fit(mask)
        if value > fit + _BETTER:
            best, fit = mask, value
    if fit < _FITS:
        logger.warning("object %d: the model finds nothing like it; what was drawn is followed", object_id)
        return drawn.mask
    return best


def _marked_parts(drawn: Drawn, mask: np.ndarray) -> np.ndarray:
    """The connected parts of a mask that belong to the prompted object, minus what is marked as off it.

    A predicted mask often covers similar objects next to the prompted one. Without a box, a part is dropped in two
    cases: nothing that was drawn touches it (the previous mask of a tracked object counts as drawn), or it contains
    marks off the object and none on it. If there are no marks on the object at all, the largest part is never dropped
    for marks off it. If every part would be dropped, all are kept.

    Returns:
        bool (H, W).
    """
    if drawn.boxes or not mask.any():  # a box gives the object's extent
        return drawn.without_off(mask)
    count, parts = label_parts(mask, gap=click_radius(mask.shape))

    def marked(where: list[np.ndarray]) -> np.ndarray:
        found = np.zeros(count + 1, bool)
        for each in where:
            found[parts[each]] = True
        return found

    off = marked(drawn.off) & ~marked(drawn.on)
    if not drawn.on:
        off[1 + np.bincount(parts.ravel(), minlength=count + 1)[1:].argmax()] = False
    kept = marked([drawn.mask]) & ~off
    kept[0] = False
    return drawn.without_off(kept[parts] if kept.any() else mask)


def overlapping(masks: torch.Tensor, given: np.ndarray, least: float = 0.5) -> list[int]:
    """Rows of bool (N, H, W) ``masks`` whose IoU with ``given``, bool (H, W), is at least ``least``."""
    other = torch.from_numpy(given).to(masks.device)
    shared = (masks & other).flatten(1).sum(1)
    union = (masks | other).flatten(1).sum(1)
    return (shared >= least * union.clamp(min=1)).nonzero()[:, 0].tolist()
