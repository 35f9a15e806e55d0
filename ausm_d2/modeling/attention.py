# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Attention and feed-forward blocks shared by History Compressor, History Decoder and Pixel Decoder.

Shape shorthand:
    B: batch (clips, frames or clips * frames)
    Q: queries
    K: keys
    D: channels
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm_d2.modeling.cpp import library_or_none

_SOURCE = Path(__file__).with_suffix(".cpp")

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


class Attention(nn.Module):
    """Multi-head attention.

    Parameter names and shapes are those of ``nn.MultiheadAttention``, so that checkpoints of models built on it fit.
    """

    def __init__(self, dim: int, *, head_dim: int) -> None:
        """
        Args:
            dim: channels D of queries, keys and values.
            head_dim: width of one head; has to divide D.

        Raises:
            ValueError: if ``head_dim`` does not divide ``dim``.
        """
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"head width {head_dim} does not divide the {dim} channels")
        self.head_dim = head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    @torch.no_grad()
    def init_as_lookup(self, *, sharpness: float = 1.0, gain: float = 1.0) -> None:
        """Initial values with which a query attends to what resembles it, and takes over what it finds there.

        Queries and keys share an orthogonal projection, values pass unchanged (docs/deviations.md, 15).

        Args:
            sharpness: scale of that projection.
            gain: scale of the output.
        """
        query, key, value = self.in_proj_weight.chunk(3)
        nn.init.orthogonal_(query, gain=sharpness)
        key.copy_(query)
        nn.init.eye_(value)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.eye_(self.out_proj.weight).mul_(gain)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            query: (B, Q, D).
            key: (B, K, D). May be the tensor ``query`` itself.
            value: (B, K, D). May be the tensor ``key`` itself.
            mask: bool, broadcastable to (B, heads, Q, K); True where a query may look.

        Returns:
            (B, Q, D).
        """
        dim = self.in_proj_weight.shape[1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:
            q, k = F.linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
        else:
            q = F.linear(query, weight[:dim], bias[:dim])
            k = F.linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim])
        v = F.linear(value, weight[2 * dim :], bias[2 * dim :])
        out = attend(self._heads(q), self._heads(k), self._heads(v), mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, as in the Transformer layers of Mask2Former."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.linear2(F.relu(self.linear1(x), inplace=True))
