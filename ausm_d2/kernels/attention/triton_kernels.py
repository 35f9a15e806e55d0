# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Attention in Triton, forward and backward, without a matrix of weights in memory (FlashAttention, arXiv 2205.14135).
Imported only if Triton is installed.

Shape shorthand:
    P: planes, one for every frame and head
    Q: queries; S: keys; D: channels of a head
    BQ, BS: queries and keys of a block; BD: D, rounded up to a power of two

All tensors are contiguous: q, out, dout, dq (P, Q, D); k, v, dk, dv (P, S, D); lse, delta (P, Q), float32. ``scale`` is
that of the scores. Weights are powers of two, and ``lse`` is the binary logarithm of their sum, as exp2 is the faster
exponential. Loops are not pipelined (num_stages=1): heads of 64 channels in float32 would need more shared memory than
any GPU gives a program (48 KB).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(x, plane, i, N, D, BD: tl.constexpr):
    """Rows i of a plane of x (P, N, D), (len(i), BD); zeros where there are none."""
    d = tl.arange(0, BD)
    return tl.load(x + (plane * N + i)[:, None] * D + d[None, :], mask=(i < N)[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _store(x, values, plane, i, N, D, BD: tl.constexpr):
    d = tl.arange(0, BD)
    place = x + (plane * N + i)[:, None] * D + d[None, :]
    tl.store(place, values.to(x.dtype.element_ty), mask=(i < N)[:, None] & (d < D)[None, :])


@triton.jit
def _scores(queries, keys, j, scale, S):
    """(BQ, BS): binary logarithms of weights that are not normalised; -inf for keys that do not exist."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * _LOG2E)
    return tl.where((j < S)[None, :], scores, float("-inf"))


@triton.jit
def attention_forward(
    q, k, v, out, lse, scale, Q, S, D, BQ: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes out and lse; grid (Q / BQ, P)."""
    plane = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BQ + tl.arange(0, BQ)
    queries = _rows(q, plane, i, Q, D, BD)
    highest = tl.full((BQ,), float("-inf"), tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    sums = tl.zeros((BQ, BD), tl.float32)
    for first in tl.range(0, S, BS, num_stages=1):
        j = first + tl.arange(0, BS)
        scores = _scores(queries, _rows(k, plane, j, S, D, BD), j, scale, S)
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf is not a number
        weights = tl.exp2(scores - base[:, None])
        kept = tl.exp2(highest - base)
        total = total * kept + tl.sum(weights, axis=1)
        values = _rows(v, plane, j, S, D, BD)
        sums = sums * kept[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        highest = higher
    _store(out, sums / total[:, None], plane, i, Q, D, BD)
    tl.store(lse + plane * Q + i, highest + tl.log2(total), mask=i < Q)


@triton.jit
def _gradient(queries, keys, values, dout, lse, delta, plane, i, j, scale, Q, S):
    """(BQ, BS): the weights of a block, and the gradient of its scores."""
    in_q = i < Q
    scores = _scores(queries, keys, j, scale, S)
    weights = tl.exp2(scores - tl.load(lse + plane * Q + i, mask=in_q, other=0.0)[:, None])
    dweights = tl.dot(dout, tl.trans(values), input_precision="ieee")
    return weights, weights * (dweights - tl.load(delta + plane * Q + i, mask=in_q, other=0.0)[:, None])


@triton.jit
def attention_backward_queries(
    q, k, v, dout, lse, delta, dq, scale, Q, S, D, BQ: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes dq; grid (Q / BQ, P). delta: the sum of dout * out over channels."""
    plane = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BQ + tl.arange(0, BQ)
    queries, g = _rows(q, plane, i, Q, D, BD), _rows(dout, plane, i, Q, D, BD)
    sums = tl.zeros((BQ, BD), tl.float32)
    for first in tl.range(0, S, BS, num_stages=1):
        j = first + tl.arange(0, BS)
        keys, values = _rows(k, plane, j, S, D, BD), _rows(v, plane, j, S, D, BD)
        _, dscores = _gradient(queries, keys, values, g, lse, delta, plane, i, j, scale, Q, S)
        sums += tl.dot(dscores.to(keys.dtype), keys, input_precision="ieee")
    _store(dq, sums * scale, plane, i, Q, D, BD)


@triton.jit
def attention_backward_keys(
    q, k, v, dout, lse, delta, dk, dv, scale, Q, S, D, BQ: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv; grid (S / BS, P)."""
    plane = tl.program_id(1).to(tl.int64)
    j = tl.program_id(0) * BS + tl.arange(0, BS)
    keys, values = _rows(k, plane, j, S, D, BD), _rows(v, plane, j, S, D, BD)
    sum_k = tl.zeros((BS, BD), tl.float32)
    sum_v = tl.zeros((BS, BD), tl.float32)
    for first in tl.range(0, Q, BQ, num_stages=1):
        i = first + tl.arange(0, BQ)
        queries, g = _rows(q, plane, i, Q, D, BD), _rows(dout, plane, i, Q, D, BD)
        weights, dscores = _gradient(queries, keys, values, g, lse, delta, plane, i, j, scale, Q, S)
        sum_v += tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision="ieee")
        sum_k += tl.dot(tl.trans(dscores.to(queries.dtype)), queries, input_precision="ieee")
    _store(dk, sum_k * scale, plane, j, S, D, BD)
    _store(dv, sum_v, plane, j, S, D, BD)
