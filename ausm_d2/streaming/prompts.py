# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Prompts: masks, boxes, points and scribbles, and how they become masks.

The network takes masks. Other prompts are drawn as coarse masks (masks/drawn.py), which the network refines
(:mod:`ausm_d2.streaming.refinement`).

Shape shorthand:
    H, W: size of the frames in pixels

Coordinates are x (to the right) and y (down) in pixels; pixel (row i, column j) covers [j, j + 1) x [i, i + 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.masks.drawn import box_mask, clicks_mask, scribble_mask


@dataclass(frozen=True)
class Mask:
    """The object's mask: bool or 0/1 uint8 (H, W)."""

    mask: np.ndarray | Tensor


@dataclass(frozen=True)
class Box:
    """A box around the object: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Points:
    """Clicks on the object (label 1) or off it (label 0)."""

    points: Sequence[Sequence[float]]  # x, y of each
    labels: Sequence[int] | None = None  # None: all are on the object


@dataclass(frozen=True)
class Scribble:
    """A line through points, on the object (label 1) or off it (label 0)."""

    points: Sequence[Sequence[float]]  # x, y of each, in drawing order
    label: int = 1
    width: float | None = None  # pixels; None: 12 in a frame whose shorter side has 480


Prompt = Mask | Box | Points | Scribble | np.ndarray | Tensor  # a bare array is a mask
_KINDS = (Mask, Box, Points, Scribble, np.ndarray, Tensor)
Prompts = Mapping[int, Prompt | Sequence[Prompt]]  # by the user's object id


@dataclass
class Drawn:
    """The prompts of one object, drawn as masks."""

    mask: np.ndarray  # bool (H, W)
    exact: bool  # the mask was given as a mask; otherwise it is coarse
    boxes: list[np.ndarray] = field(default_factory=list)  # bool (H, W) each
    on: list[np.ndarray] = field(default_factory=list)  # bool (H, W): clicks and scribbles on the object
    off: list[np.ndarray] = field(default_factory=list)  # bool (H, W): clicks and scribbles off the object

    def marks(self, label: int) -> list[np.ndarray]:
        """The list for clicks and scribbles of a label: ``on`` for 1, ``off`` for 0.

        Raises:
            UserError: if the label is neither 0 nor 1.
        """
        if label not in (0, 1):
            raise UserError(f"label {label!r}, expected 1 (on the object) or 0 (where it is not)")
        return self.on if label else self.off

    def fit(self, mask: np.ndarray) -> float:
        """How well a mask agrees with the prompts, from 0 to 1.

        The mean over all prompts of: the IoU of the bounding boxes, for a box; the covered share of a click or scribble
        on the object; the uncovered share of one off it. These shares are doubled, up to 1, because a click is drawn as
        a disc, which may reach beyond the object.
        """
        if not mask.any():
            return 0.0
        found = _bounds(mask)
        scores = [_box_iou(found, _bounds(box)) for box in self.boxes]
        scores += [min(1.0, 2 * mask[each].mean()) for each in self.on]
        scores += [min(1.0, 2 * (~mask[each]).mean()) for each in self.off]
        return float(np.mean(scores)) if scores else 1.0

    def without_off(self, mask: np.ndarray) -> np.ndarray:
        """The mask without the clicks and scribbles off the object."""
        return mask & ~np.any(self.off, axis=0) if self.off else mask


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _box_iou(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def draw(prompts: Prompts, size: Sequence[int], current: Mapping[int, np.ndarray] | None = None) -> dict[int, Drawn]:
    """Check prompts and draw them as masks.

    Args:
        prompts: by object id; several prompts of one object are combined.
        size: (H, W).
        current: bool (H, W) by id: masks of tracked objects. Clicks and scribbles edit them; a mask or a box replaces
            them.

    Raises:
        UserError: naming the object and what is wrong.
    """
    drawn = {}
    for object_id, given in prompts.items():
        check_object_id(object_id)
        several: list[Any] = [given]
        if isinstance(given, list | tuple) and all(isinstance(each, _KINDS) for each in given):
            several = list(given)
        try:
            drawn[int(object_id)] = _draw(several, (size[0], size[1]), (current or {}).get(int(object_id)))
        except UserError as error:
            raise UserError(f"object {object_id}: {error}") from None
    return drawn


def check_object_id(object_id: int) -> int:
    """Return the id as an int, if a user may choose it.

    Raises:
        UserError: if not.
    """
    if isinstance(object_id, bool) or not isinstance(object_id, int | np.integer) or not 0 < object_id < 2**31:
        raise UserError(f"object id {object_id!r}: ids are whole numbers from 1 on")
    return int(object_id)


def _draw(prompts: Iterable[Prompt], size: tuple[int, int], current: np.ndarray | None) -> Drawn:
    out = Drawn(np.zeros(size, bool), exact=True)
    replaces = False
    for prompt in prompts:
        if isinstance(prompt, Mask | np.ndarray | Tensor):
            out.mask |= checked_mask(prompt.mask if isinstance(prompt, Mask) else prompt, size)
            replaces = True
            continue
        out.exact = False
        if isinstance(prompt, Box):
            out.boxes.append(box_mask(size, (prompt.x0, prompt.y0, prompt.x1, prompt.y1)))
            replaces = True
        elif isinstance(prompt, Points):
            labels = [1] * len(prompt.points) if prompt.labels is None else list(prompt.labels)
            if len(labels) != len(prompt.points):
                raise UserError(f"{len(prompt.points)} points, but {len(labels)} labels")
            for point, label in zip(prompt.points, labels, strict=True):
                out.marks(label).append(clicks_mask(size, [point]))
        elif isinstance(prompt, Scribble):
            out.marks(prompt.label).append(scribble_mask(size, prompt.points, prompt.width))
        else:
            raise UserError(
                "a prompt is a mask, a bool array (H, W), or Mask, Box, Points or Scribble; "
                f"found {type(prompt).__name__}"
            )
    if current is not None and not replaces:
        out.mask |= current
    for each in (*out.boxes, *out.on):
        out.mask |= each
    if not out.mask.any():
        raise UserError("nothing was given that is on the object")
    out.mask = out.without_off(out.mask)
    if not out.mask.any():
        raise UserError("what was given is all where the object is not")
    return out


def checked_mask(mask: object, size: tuple[int, ...]) -> np.ndarray:
    """A mask in any accepted form, as bool (H, W).

    Raises:
        UserError: saying what is wrong with it.
    """
    if isinstance(mask, Tensor):
        mask = mask.cpu().numpy()
    if not isinstance(mask, np.ndarray):
        raise UserError(f"a prompt is a mask, a bool array (H, W); found {type(mask).__name__}")
    if mask.dtype not in (np.bool_, np.uint8) or mask.ndim != 2:
        raise UserError(f"a mask is bool or 0/1 uint8 (H, W); found {mask.dtype} {mask.shape}")
    if mask.shape != size:
        raise UserError(f"its mask is {mask.shape[1]}x{mask.shape[0]} pixels, the frame {size[1]}x{size[0]}")
    if mask.max() > 1:
        raise UserError(f"a uint8 mask holds 0 and 1; found {mask.max()}")
    if not mask.any():
        raise UserError("its mask is empty")
    return mask.astype(bool)
