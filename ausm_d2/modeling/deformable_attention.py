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
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm_d2.modeling.cpp import library_or_none
from ausm_d2.modeling.kept import kept
from ausm_d2.modeling.triton_runs import triton_runs

_SOURCE = Path(__file__).with_suffix(".cpp")


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


class MSDeformAttn(nn.Module):
    """Every pixel of every level gathers P bilinear samples per head from each level, around its own place.

    Parameter names and shapes are Deformable DETR's, as Mask2Former's checkpoints have them.
    """

    def __init__(self, dim: int, *, num_levels: int, num_heads: int, num_points: int) -> None:
        """
        Raises:
            ValueError: if ``num_heads`` does not divide ``dim``.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the {dim} channels")
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Point p of head h starts p + 1 pixels away in the direction of h (the directions fill the circle)."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)
        offsets = direction[:, None, None, :] * distance[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, value: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """
        Args:
            query: (B, S, D) pixels of all levels, positions added.
            value: (B, S, D) the same pixels without positions.
            sizes: (height, width) of each of the L levels, in the order of the pixels.

        Returns:
            (B, S, D).
        """
        batch, pixels, dim = value.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        values = self.value_proj(value)
        logits = self.attention_weights(query).view(batch, pixels, heads, levels, points)
        offsets = self.sampling_offsets(query).view(batch, pixels, heads, levels, points, 2)
        if triton_runs(values):
            from ausm_d2.modeling.deformable_triton import attend  # Triton is not everywhere, and takes a while

            return self.output_proj(attend(values.view(batch, pixels, heads, -1), offsets, logits, sizes).flatten(2))

        # Sampling keeps the precision of weights and coordinates under autocast too.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        offsets = offsets.to(logits.dtype)
        if value.device.type == "cpu" and logits.dtype == torch.float32 and not torch.is_grad_enabled():
            library = library_or_none(_SOURCE)
            if library is not None:
                values = values.view(batch, pixels, heads, -1).float()
                return self.output_proj(_attend_on_cpu(library, values, offsets, logits, sizes).flatten(2))

        weights = logits.flatten(3).softmax(dim=-1)
        values = values.transpose(1, 2).reshape(batch * heads, dim // heads, pixels)
        weights = weights.transpose(1, 2).reshape(batch * heads, 1, pixels, levels, points)
        offsets = offsets.transpose(1, 2).reshape(batch * heads, pixels, levels, points, 2)
        reference = _reference_points(tuple(sizes), query.device, weights.dtype)

        out: Tensor | None = None
        for level, (feature, size) in enumerate(
            zip(values.split([h * w for h, w in sizes], dim=2), sizes, strict=True)
        ):
            grid = torch.addcmul(reference[:, :, 0], offsets[:, :, level], _pixel(size, query.device, weights.dtype))
            samples = F.grid_sample(feature.unflatten(2, size).to(grid.dtype), grid, align_corners=False)
            mixed = (samples * weights[:, :, :, level]).sum(dim=-1)
            out = mixed if out is None else out + mixed
        assert out is not None
        return self.output_proj(out.reshape(batch, dim, pixels).transpose(1, 2))
