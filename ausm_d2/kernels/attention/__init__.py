# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Attention of inference on a CPU (attention.cpp), else PyTorch's.

Shape shorthand: B: batch; Q: queries; K: keys; D: channels.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.cpp import library_or_none

_SOURCE = Path(__file__).with_name("attention.cpp")

_QUERIES = {torch.float32: 128, torch.bfloat16: 64}
"""Fewer do not pay for packing the keys and values (tools/benchmark.py attention)."""


class _Inputs(ctypes.Structure):
    """``Attention`` of attention.cpp."""

    _fields_ = [
        ("sizes", ctypes.c_int64 * 5),
        ("strides", ctypes.c_int64 * 12),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
    ]


def kernel_for(q: Tensor, k: Tensor, v: Tensor) -> ctypes.CDLL | None:
    """attention.cpp, where it can be compiled and is the faster way for these inputs, outside autograd.

    Of all that PyTorch accepts it knows the usual: no broadcasting, one type that autocast leaves alone, some keys.
    """
    if q.device.type != "cpu" or not q.dtype == k.dtype == v.dtype or q.dtype not in _QUERIES:
        return None
    if q.shape[2] < _QUERIES[q.dtype] or not k.numel() or k.shape != (*q.shape[:2], k.shape[2], q.shape[3]):
        return None
    if k.shape != v.shape or (q.dtype == torch.float32 and torch.is_autocast_enabled("cpu")):
        return None
    library = library_or_none(_SOURCE)
    bfloat16 = ctypes.c_int32(q.dtype == torch.bfloat16)
    return library if library and library.ausm_attention_fits(ctypes.c_int64(q.shape[3]), bfloat16) else None


def _attend_on_cpu(library: ctypes.CDLL, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, queries, width = q.shape
    q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))
    out = q.new_empty(batch, queries, heads, width).transpose(1, 2)
    tensors = (q, k, v, out)
    inputs = _Inputs(
        (batch, heads, queries, k.shape[2], width),
        tuple(stride for each in tensors for stride in each.stride()[:3]),
        width**-0.5,
        torch.get_num_threads(),
    )
    addresses = (ctypes.c_void_p(each.data_ptr()) for each in tensors)
    if not library.ausm_attention(ctypes.byref(inputs), *addresses, ctypes.c_int32(q.dtype == torch.bfloat16)):
        raise MemoryError(f"attention of {queries} queries to {k.shape[2]} keys, {batch} x {heads} heads")
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """``scaled_dot_product_attention``; without a mask and without gradients, on a CPU, by attention.cpp, which
    multiplies pairs of bfloat16 where the processor can (without AMX, PyTorch's gains next to nothing by bfloat16).

    Args:
        q: (B, heads, Q, D / heads).
        k, v: (B, heads, K, D / heads).
        mask: bool, broadcastable to (B, heads, Q, K); True where a query may look.

    Returns:
        (B, heads, Q, D / heads).
    """
    library = None if mask is not None or torch.is_grad_enabled() else kernel_for(q, k, v)
    if library is not None:
        return _attend_on_cpu(library, q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
