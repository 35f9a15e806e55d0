# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Attention in C++ (attention.cpp), for inference. It uses AVX512_BF16 for bfloat16; without AMX, PyTorch's attention
is hardly faster in bfloat16 than in float32.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.attention.call import AttentionCall
from ausm_d2.kernels.cpp_kernel import CppKernel

SOURCE = Path(__file__).with_name("attention.cpp")

MIN_QUERIES = {torch.float32: 128, torch.bfloat16: 64}
"""With fewer queries, packing keys and values costs more than it saves (tools/benchmark.py attention)."""


class _Attention(ctypes.Structure):
    """``Attention`` of attention.cpp."""

    _fields_ = [
        ("sizes", ctypes.c_int64 * 5),
        ("strides", ctypes.c_int64 * 12),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
    ]


class CpuAttention(CppKernel[AttentionCall]):
    source = SOURCE

    def fits(self, call: AttentionCall) -> bool:
        """Where it is faster than PyTorch.

        Supported are calls without gradients, mask or broadcasting, with at least one key, in one dtype that autocast
        would not change.
        """
        q, k, v, mask = call
        if mask is not None or torch.is_grad_enabled():
            return False
        if not q.dtype == k.dtype == v.dtype or q.dtype not in MIN_QUERIES or q.shape[2] < MIN_QUERIES[q.dtype]:
            return False
        if not k.numel() or k.shape != v.shape or k.shape != (*q.shape[:2], k.shape[2], q.shape[3]):
            return False
        if q.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
            return False
        bfloat16 = ctypes.c_int32(q.dtype == torch.bfloat16)
        return bool(cpp.library(SOURCE).ausm_attention_fits(ctypes.c_int64(q.shape[3]), bfloat16))

    def run(self, call: AttentionCall) -> tuple[Tensor]:
        return (attend_on_cpu(cpp.library(SOURCE), *call[:3]),)


def attend_on_cpu(library: ctypes.CDLL, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Shapes as in :func:`ausm_d2.kernels.attention.attend`."""
    batch, heads, queries, width = q.shape
    q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))
    out = q.new_empty(batch, queries, heads, width).transpose(1, 2)
    tensors = (q, k, v, out)
    inputs = _Attention(
        (batch, heads, queries, k.shape[2], width),
        tuple(stride for each in tensors for stride in each.stride()[:3]),
        width**-0.5,
        torch.get_num_threads(),
    )
    addresses = (ctypes.c_void_p(each.data_ptr()) for each in tensors)
    if not library.ausm_attention(ctypes.byref(inputs), *addresses, ctypes.c_int32(q.dtype == torch.bfloat16)):
        raise MemoryError(f"attention of {queries} queries to {k.shape[2]} keys, {batch} x {heads} heads")
    return out
