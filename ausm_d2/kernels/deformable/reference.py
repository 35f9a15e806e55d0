# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention by ``grid_sample``: any device, any dtype, gradients by autograd.

Shape shorthand: S: pixels of all levels together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.cached_tensors import cache_tensors
from ausm_d2.kernels.deformable.call import DeformableCall


@cache_tensors(maxsize=128)
def _reference_points(sizes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(1, S, 1, 1, 2): centre (x, y) of every pixel of every level in the [-1, 1] coordinates of ``grid_sample``."""
    with torch.inference_mode(False), torch.no_grad():
        points = []
        for height, width in sizes:
            y = (torch.arange(height, dtype=torch.float64) * 2 + 1) / height - 1
            x = (torch.arange(width, dtype=torch.float64) * 2 + 1) / width - 1
            points.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1))
        return torch.cat(points)[None, :, None, None].to(device=device, dtype=dtype)


@cache_tensors(maxsize=128)
def _pixel(size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(2) width and height of a pixel of a level, in the same coordinates."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor([2 / size[1], 2 / size[0]], device=device, dtype=dtype)


def attend(call: DeformableCall) -> tuple[Tensor]:
    """See :func:`ausm_d2.kernels.deformable.deformable_attention`."""
    values, offsets, logits, sizes = call
    batch, pixels, heads, channels = values.shape
    levels, points = logits.shape[3:]
    # Weights and coordinates stay in float32 under autocast.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    offsets = offsets.to(logits.dtype)
    weights = logits.flatten(3).softmax(dim=-1)
    values = values.permute(0, 2, 3, 1).reshape(batch * heads, channels, pixels)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, pixels, levels, points)
    offsets = offsets.transpose(1, 2).reshape(batch * heads, pixels, levels, points, 2)
    reference = _reference_points(sizes, values.device, weights.dtype)

    out: Tensor | None = None
    for level, (feature, size) in enumerate(zip(values.split([h * w for h, w in sizes], dim=2), sizes, strict=True)):
        grid = torch.addcmul(reference[:, :, 0], offsets[:, :, level], _pixel(size, values.device, weights.dtype))
        samples = F.grid_sample(feature.unflatten(2, size).to(grid.dtype), grid, align_corners=False)
        mixed = (samples * weights[:, :, :, level]).sum(dim=-1)
        out = mixed if out is None else out + mixed
    assert out is not None
    return (out.view(batch, heads, channels, pixels).permute(0, 3, 1, 2),)
