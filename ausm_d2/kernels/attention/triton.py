# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Attention in Triton: launches the kernels of triton_kernels.py, with autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ausm_d2.kernels import triton_launch
from ausm_d2.kernels.attention.call import AttentionCall
from ausm_d2.kernels.autocast import autocast_dtype
from ausm_d2.kernels.choice import Kernel

_QUERIES, _KEYS = 32, 32  # of a block
# The interpreter multiplies the bits of bfloat16 matrices as integers.
_DTYPES = (torch.float32, torch.float16) if triton_launch.INTERPRETED else triton_launch.DTYPES
_MAX_WIDTH = 64  # channels of a head: blocks of more do not fit into 48 KB of shared memory
_MAX_PLANES = 65535  # of the second grid dimension

launch = triton_launch.Launcher(__package__)


class TritonAttention(Kernel[AttentionCall]):
    """Only by name: on CUDA the reference is a fused kernel already, and has been tuned."""

    name = "triton"
    devices = triton_launch.DEVICES
    automatic = False

    def unavailable(self) -> str | None:
        return triton_launch.why_not()

    def fits(self, call: AttentionCall) -> bool:
        """Without mask or broadcasting, with at least one key, in one dtype that autocast would not change."""
        q, k, v, mask = call
        if mask is not None or not q.dtype == k.dtype == v.dtype or q.dtype not in _DTYPES:
            return False
        if autocast_dtype(q.device.type) not in (None, q.dtype):
            return False
        if not k.numel() or k.shape != v.shape or k.shape != (*q.shape[:2], k.shape[2], q.shape[3]):
            return False
        return q.shape[3] <= _MAX_WIDTH and q.shape[0] * q.shape[1] <= _MAX_PLANES

    def run(self, call: AttentionCall) -> tuple[Tensor]:
        return (_Attend.apply(*(each.contiguous() for each in call[:3])),)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        _launch("attention_forward", q, k, _QUERIES, q.shape[2], (q, k, v, out, lse))
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dout = dout.contiguous()
        delta = (dout.float() * out.float()).sum(dim=-1)
        dq, dk, dv = (torch.empty_like(each) for each in (q, k, v))
        inputs = (q, k, v, dout, lse, delta)
        _launch("attention_backward_queries", q, k, _QUERIES, q.shape[2], (*inputs, dq))
        _launch("attention_backward_keys", q, k, _KEYS, k.shape[2], (*inputs, dk, dv))
        return dq, dk, dv


def _launch(kernel: str, q: Tensor, k: Tensor, block: int, length: int, tensors: tuple[Tensor, ...]) -> None:
    """``block`` and ``length``: how the first grid dimension is divided."""
    frames, heads, queries, width = q.shape
    launch(
        kernel,
        (-(-length // block), frames * heads),
        q,
        *tensors,
        width**-0.5,
        *(queries, k.shape[2], width),
        BQ=_QUERIES,
        BS=_KEYS,
        BD=max(16, 1 << (width - 1).bit_length()),  # tl.dot needs 16
    )
