# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3): in Triton on CUDA, in C++ for
inference on a CPU, else by ``grid_sample``.

Shape shorthand:
    B: images
    S: pixels of all levels together; the queries are these pixels
    L: levels
    P: sampling points per head and level
    D: channels
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.cpp import library_or_none
from ausm_d2.kernels.kept import kept
from ausm_d2.kernels.triton_runs import triton_runs

_SOURCE = Path(__file__).with_name("deformable.cpp")


@kept(maxsize=128)
def _reference_points(sizes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(1, S, 1, 1, 2) centre (x, y) of every pixel of every level, in the [-1, 1] coordinates of ``grid_sample``."""
    with torch.inference_mode(False), torch.no_grad():
        points = []
        for height, width in sizes:
            y = (torch.arange(height, dtype=torch.float64) * 2 + 1) / height - 1
            x = (torch.arange(width, dtype=torch.float64) * 2 + 1) / width - 1
            points.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1))
        return torch.cat(points)[None, :, None, None].to(device=device, dtype=dtype)


@kept(maxsize=128)
def _pixel(size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(2) width and height of a pixel of a level, in the same coordinates."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor([2 / size[1], 2 / size[0]], device=device, dtype=dtype)


def _attend_on_cpu(
    library: ctypes.CDLL, values: Tensor, offsets: Tensor, logits: Tensor, sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """All float32: values (B, S, heads, D / heads), offsets (B, S, heads, L, P, 2) in pixels, logits of the weights
    (B, S, heads, L, P) -> like values."""
    values, offsets, logits = values.contiguous(), offsets.contiguous(), logits.contiguous()
    out = torch.empty_like(values)
    level_sizes = (ctypes.c_int64 * (2 * len(sizes)))(*(side for size in sizes for side in size))
    batch, pixels, heads, channels = values.shape
    addresses = (ctypes.c_void_p(each.data_ptr()) for each in (values, offsets, logits))
    counts = (ctypes.c_int64(each) for each in (batch, pixels, heads, *logits.shape[3:], channels))
    library.ausm_deformable_attention(
        *addresses, level_sizes, ctypes.c_void_p(out.data_ptr()), *counts, ctypes.c_int32(torch.get_num_threads())
    )
    return out


def deformable_attention(values: Tensor, offsets: Tensor, logits: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """
    Args:
        values: (B, S, heads, D / heads) of the pixels.
        offsets: (B, S, heads, L, P, 2), x and y, in pixels of the level.
        logits: (B, S, heads, L, P) of the weights.
        sizes: height and width of each level.

    Returns:
        (B, S, heads, D / heads).
    """
    batch, pixels, heads, channels = values.shape
    levels, points = logits.shape[3:]
    if triton_runs(values):
        from ausm_d2.kernels.deformable.triton import attend  # Triton is not everywhere, and takes a while

        return attend(values, offsets, logits, sizes)

    # Sampling keeps the precision of weights and coordinates under autocast too.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    offsets = offsets.to(logits.dtype)
    if values.device.type == "cpu" and logits.dtype == torch.float32 and not torch.is_grad_enabled():
        library = library_or_none(_SOURCE)
        if library is not None:
            return _attend_on_cpu(library, values.float(), offsets, logits, sizes)

    weights = logits.flatten(3).softmax(dim=-1)
    values = values.permute(0, 2, 3, 1).reshape(batch * heads, channels, pixels)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, pixels, levels, points)
    offsets = offsets.transpose(1, 2).reshape(batch * heads, pixels, levels, points, 2)
    reference = _reference_points(tuple(sizes), values.device, weights.dtype)

    out: Tensor | None = None
    for level, (feature, size) in enumerate(zip(values.split([h * w for h, w in sizes], dim=2), sizes, strict=True)):
        grid = torch.addcmul(reference[:, :, 0], offsets[:, :, level], _pixel(size, values.device, weights.dtype))
        samples = F.grid_sample(feature.unflatten(2, size).to(grid.dtype), grid, align_corners=False)
        mixed = (samples * weights[:, :, :, level]).sum(dim=-1)
        out = mixed if out is None else out + mixed
    assert out is not None
    return out.view(batch, heads, channels, pixels).permute(0, 3, 1, 2)
