# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Masks between pixels and stride 4, and overlapping masks to one label per pixel.

Shape shorthand:
    R: rows (masks)
    H, W: image size in pixels; H_in, W_in: the network's input size, before padding
    H4, W4: mask size, stride 4 of the padded input
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masks_at_stride4(masks: Tensor) -> Tensor:
    """Bool (..., H, W) -> float {0, 1} (..., H/4, W/4): a cell is set if half its area is (docs/deviations.md, 3).

    If no cell reaches half, the cells with the largest covered area are set: a small object does not disappear.
    """
    lead = masks.shape[:-2]
    pooled = F.avg_pool2d(masks.flatten(0, -3)[:, None].float(), 4)
    fullest = pooled.flatten(1).amax(dim=1)[:, None, None, None]
    return ((pooled >= fullest.clamp(max=0.5)) & (pooled > 0)).float().view(*lead, *pooled.shape[-2:])


def upsample_logits(logits: Tensor, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Bilinear upsampling of mask logits, without the padding.

    Args:
        logits: (R, H4, W4), of an input of ``input_size`` pixels that was padded at the bottom and right.
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
    # The padding is upsampled too and then cut off. PyTorch rounds output sizes down: without the factor of 1 + 1e-7 a
    # side whose size is an exact multiple could lose its last pixel.
    scale = [4 * out / side * (1 + 1e-7) for out, side in zip(size, input_size, strict=True)]
    out = F.interpolate(
        logits[None], scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )
    return out[0, :, : size[0], : size[1]]


def winners(logits: Tensor) -> Tensor:
    """The surest row has the pixel: (R, H, W) logits -> int64 (H, W), the row of the largest logit, or -1 where every
    logit is <= 0. Of equal logits the first row wins."""
    if not len(logits):
        return torch.full(logits.shape[1:], -1, device=logits.device)
    largest, row = logits.max(dim=0)
    return torch.where(largest > 0, row, -1)


def without_overlaps(logits: Tensor) -> Tensor:
    """(R, H, W) logits -> bool (R, H, W): every pixel in at most one mask, see :func:`winners`."""
    return winners(logits) == torch.arange(len(logits), device=logits.device)[:, None, None]
