# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention in Triton: launches the kernels of triton_kernels.py, with autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ausm_d2.kernels import triton_launch
from ausm_d2.kernels.cached_tensors import cache_tensors
from ausm_d2.kernels.choice import Kernel
from ausm_d2.kernels.deformable.call import DeformableCall

_QUERIES = 16  # per program: the most whose sums fit into registers


launch = triton_launch.Launcher(__package__)


class TritonDeformable(Kernel[DeformableCall]):
    name = "triton"
    devices = triton_launch.DEVICES

    def unavailable(self) -> str | None:
        return triton_launch.why_not()

    def fits(self, call: DeformableCall) -> bool:
        return all(each.dtype in triton_launch.DTYPES for each in call[:3])

    def run(self, call: DeformableCall) -> tuple[Tensor]:
        return (_Attend.apply(*(each.contiguous() for each in call[:3]), call.sizes),)


@cache_tensors(maxsize=128)
def _grids(sizes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """``centres`` and ``levels`` of :func:`deformable_forward`."""
    with torch.inference_mode(False), torch.no_grad():
        centres, levels, first = [], [], 0
        for height, width in sizes:
            y, x = ((torch.arange(side, dtype=torch.float64) + 0.5) / side for side in (height, width))
            centres.append(torch.cartesian_prod(y, x).flip(1))
            levels.append((height, width, first))
            first += height * width
        return torch.cat(centres).float().to(device), torch.tensor(levels, dtype=torch.int32, device=device)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, offsets: Tensor, logits: Tensor, sizes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        ctx.save_for_backward(values, offsets, logits)
        ctx.sizes = sizes
        out = torch.empty_like(values)
        _launch("deformable_forward", (values, offsets, logits, *_grids(sizes, values.device), out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        values, offsets, logits = ctx.saved_tensors
        dvalues = torch.zeros_like(values, dtype=torch.float32)
        doffsets, dlogits = (torch.empty_like(each, dtype=torch.float32) for each in (offsets, logits))
        inputs = (values, offsets, logits, *_grids(ctx.sizes, values.device), dout.contiguous())
        _launch("deformable_backward", (*inputs, dvalues, doffsets, dlogits))
        return dvalues.to(values.dtype), doffsets.to(offsets.dtype), dlogits.to(logits.dtype), None


def _launch(kernel: str, tensors: tuple[Tensor, ...]) -> None:
    values, _, logits, *_ = tensors
    batch, pixels, heads, channels = values.shape
    levels, points = logits.shape[3:]
    grid = (-(-pixels // _QUERIES), heads, batch)
    launch(
        kernel,
        grid,
        values,
        *tensors,
        *(pixels, heads, channels),
        L=levels,
        P=points,
        BQ=_QUERIES,
        BC=1 << (channels - 1).bit_length(),
    )
