# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Sine position encodings, shared by all attention modules.

Shape shorthand:
    h, w: feature size
    D: channels
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ausm_d2.kernels.cached_tensors import cache_tensors

_TEMPERATURE = 10000.0


@cache_tensors(maxsize=16)  # one for a large frame takes tens of megabytes
def sine_position(
    height: int, width: int, channels: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Two-dimensional encoding: sines and cosines of y in the first half of the channels, of x in the second.

    Equal to Mask2Former's ``PositionEmbeddingSine(channels // 2, normalize=True)`` without padding mask: coordinates
    count from 1 and are scaled so that the last row and the last column are at ``2 pi``.

    Args:
        height: h.
        width: w.
        channels: D, a multiple of 4.

    Returns:
        (D, h, w), cached and shared by all callers: do not write to it.

    Raises:
        ValueError: if ``channels`` is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"sine positions need a multiple of 4 channels, got {channels}")
    # Not an inference tensor, even if first called in inference_mode: training uses the cached tensor too.
    with torch.inference_mode(False), torch.no_grad():
        y = _sines(height, channels // 2)[:, :, None].expand(-1, -1, width)
        x = _sines(width, channels // 2)[:, None, :].expand(-1, height, -1)
        return torch.cat([y, x]).to(device=device, dtype=dtype)


@cache_tensors(maxsize=16)
def sine_tokens(
    height: int, width: int, channels: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """:func:`sine_position` as contiguous (h * w, D) tokens, cached and shared likewise."""
    position = sine_position(height, width, channels, device=device, dtype=dtype)
    with torch.inference_mode(False), torch.no_grad():
        return position.flatten(1).T.contiguous()


def _sines(length: int, channels: int) -> Tensor:
    """(channels, length) interleaved sines and cosines of the coordinates 1..length."""
    coordinate = torch.arange(1, length + 1, dtype=torch.float64) * (2 * math.pi / (length + 1e-6))
    frequency = _TEMPERATURE ** -(torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angle = frequency[:, None] * coordinate
    return torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)
