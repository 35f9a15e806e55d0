# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Masks: downsampling to stride 4, upsampling of logits, overlapping masks to one label per pixel.

Shape shorthand:
    R: rows (masks)
    H, W: frame size in pixels; H_in, W_in: the network's input size, before padding; H_pad, W_pad: after padding
    H4, W4: mask size at stride 4: H_pad/4, W_pad/4
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def masks_at_stride4(masks: Tensor) -> Tensor:
    """Bool (..., H_pad, W_pad) -> float {0, 1} (..., H4, W4): a cell is 1 if at least half of it is covered
    (docs/deviations.md, 3).

    If no cell is, the cells with the largest covered area are 1, so that a small object does not disappear.
    """
    lead = masks.shape[:-2]
    pooled = F.avg_pool2d(masks.flatten(0, -3)[:, None].float(), 4)
    fullest = pooled.flatten(1).amax(dim=1)[:, None, None, None]
    return ((pooled >= fullest.clamp(max=0.5)) & (pooled > 0)).float().view(*lead, *pooled.shape[-2:])


def mask_boxes(masks: Tensor) -> Tensor:
    """Bool (..., H, W) -> int64 (..., 4): x0, y0, x1, y1 in pixels, the last two exclusive; zeros for an empty mask."""
    sides = []
    for filled in (masks.any(dim=-2), masks.any(dim=-1)):  # columns, rows
        some = filled.any(dim=-1)
        first = filled.int().argmax(dim=-1)
        last = filled.shape[-1] - filled.flip(-1).int().argmax(dim=-1)
        sides.append((first * some, last * some))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=-1)


def upsample_logits(logits: Tensor, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Upsample mask logits bilinearly and crop the padding.

    Args:
        logits: (R, H4, W4), for an input of ``input_size`` pixels, padded at the bottom and right.
        input_size: (H_in, W_in).
        size: (H, W).

    Returns:
        (R, H, W).
    """
    if not len(logits):
        return logits.new_zeros(0, *size)
    padded = [side * 4 for side in logits.shape[-2:]]
    if tuple(padded) == input_size:
        return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    # The padding is upsampled too, then cropped. PyTorch rounds output sizes down: without the factor 1 + 1e-7 a side
    # that is an exact multiple could lose its last pixel.
    scale = [4 * out / side * (1 + 1e-7) for out, side in zip(size, input_size, strict=True)]
    out = F.interpolate(
        logits[None], scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )
    return out[0, :, : size[0], : size[1]]


def winners(logits: Tensor) -> Tensor:
    """(R, H, W) logits -> int64 (H, W): the row with the largest logit at each pixel, -1 where all logits are <= 0.
    Ties go to the first row."""
    if not len(logits):
        return torch.full(logits.shape[1:], -1, device=logits.device)
    largest, row = logits.max(dim=0)
    return torch.where(largest > 0, row, -1)


def masks_and_winners(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits in parts of some rows, (r, H, W) each -> bool (R, H, W) masks, and :func:`winners` of all rows together.

    The parts (at least one) are requested one at a time, so that only one is in memory.
    """
    masks: list[Tensor] = []
    owner = largest = torch.empty(0)
    rows = 0
    for logits in parts:
        if not masks:
            owner = torch.full(logits.shape[1:], -1, device=logits.device)
            largest = logits.new_zeros(logits.shape[1:])
        masks.append(logits > 0)
        if len(logits):
            best, row = logits.max(dim=0)
            owner = torch.where(best > largest, row + rows, owner)
            largest = torch.maximum(best, largest)
        rows += len(logits)
    return masks[0] if len(masks) == 1 else torch.cat(masks), owner


def without_overlaps(logits: Tensor) -> Tensor:
    """(R, H, W) logits -> bool (R, H, W): each pixel is in at most one mask, see :func:`winners`."""
    return winners(logits) == torch.arange(len(logits), device=logits.device)[:, None, None]
