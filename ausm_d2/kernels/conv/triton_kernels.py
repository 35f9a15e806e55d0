# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The causal convolution of Mamba in Triton, for many short sequences. Imported only if Triton is installed.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; K: width of the convolution; P: programs that
share the sequences; G: groups of BE channels each.

A program processes every P-th sequence for one group of channels, all frames in order; per-channel values are loaded
once. Sums over sequences are written per program and sums over channels per group, and added by the caller: without
atomics, results are deterministic.

Activations have strides over sequences and frames (``x_n``, ``x_t``) and stride 1 over channels. All other tensors are
contiguous.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from ausm_d2.kernels.triton_math import row, sigmoid


@triton.jit
def _input(x, initial, n, t, x_n, x_t, e, in_e, E, K: tl.constexpr):
    """(BE,): the input of frame t; for t < 0 from ``initial``."""
    if t >= 0:
        value = row(x, n * x_n + t * x_t, e, in_e)
    else:
        value = tl.zeros_like(e).to(tl.float32)
        if initial is not None:
            value = row(initial, n * E * K, e * K + K + t, in_e)
    return value


@triton.jit
def conv_forward(
    x, weight, bias, initial, y, last, x_n, x_t, N, T, E, K: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Writes y and last; grid (P, G)."""
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    in_e = e < E
    offset = row(bias, 0, e, in_e)
    for sequence in range(tl.program_id(0), N, tl.num_programs(0)):
        n = tl.zeros((), tl.int64) + sequence
        for t in range(T):
            out = offset
            for k in tl.static_range(K):
                out += row(weight, k * E, e, in_e) * _input(x, initial, n, t + k - K + 1, x_n, x_t, e, in_e, E, K)
            tl.store(y + (n * T + t) * E + e, (out * sigmoid(out)).to(y.dtype.element_ty), mask=in_e)
        # Oldest first: if last is initial, every thread has read an entry before it is overwritten.
        for k in tl.static_range(K):
            tl.debug_barrier()
            value = _input(x, initial, n, T + k - K, x_n, x_t, e, in_e, E, K)
            tl.store(last + n * E * K + e * K + k, value.to(last.dtype.element_ty), mask=in_e)


@triton.jit
def conv_backward(
    x, weight, bias, initial, dy, dlast, dx, dinitial, gradient, dweight, dbias,
    x_n, x_t, dy_n, dy_t, N, T, E, K: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Writes gradients: dx, dinitial, dweight (P, K, E), dbias (P, E). ``gradient`` (N, T, E) is scratch, float32.
    Grid (P, G)."""
    program = tl.program_id(0)
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    in_e = e < E
    offset = row(bias, 0, e, in_e)
    sum_bias = tl.zeros((BE,), tl.float32)
    tap = tl.arange(0, triton.next_power_of_2(K))
    sum_weight = tl.zeros((triton.next_power_of_2(K), BE), tl.float32)
    for sequence in range(program, N, tl.num_programs(0)):
        n = tl.zeros((), tl.int64) + sequence
        for t in range(T):
            out = offset
            for k in tl.static_range(K):
                out += row(weight, k * E, e, in_e) * _input(x, initial, n, t + k - K + 1, x_n, x_t, e, in_e, E, K)
            open_ = sigmoid(out)
            g = row(dy, n * dy_n + t * dy_t, e, in_e) * open_ * (1.0 + out * (1.0 - open_))
            tl.store(gradient + (n * T + t) * E + e, g, mask=in_e)
            sum_bias += g
            for k in tl.static_range(K):
                seen = _input(x, initial, n, t + k - K + 1, x_n, x_t, e, in_e, E, K)
                sum_weight += tl.where(tap[:, None] == k, (g * seen)[None, :], 0.0)
        tl.debug_barrier()
        for i in range(T + K):  # the input of frame i - K; the first K are those before the clip
            d = tl.zeros((BE,), tl.float32)
            for k in tl.static_range(K):
                later = i - 1 - k  # the frame that multiplies this input by weight k
                if (later >= 0) & (later < T):
                    d += row(weight, k * E, e, in_e) * row(gradient, (n * T + later) * E, e, in_e)
            if dlast is not None:  # noqa: SIM102  (a compile-time constant, unlike the inner condition)
                if i >= T:
                    d += row(dlast, n * E * K, e * K + i - T, in_e)
            if i >= K:
                tl.store(dx + (n * T + i - K) * E + e, d.to(dx.dtype.element_ty), mask=in_e)
            elif dinitial is not None:
                tl.store(dinitial + n * E * K + e * K + i, d.to(dinitial.dtype.element_ty), mask=in_e)
        tl.debug_barrier()
    for k in tl.static_range(K):
        tl.store(
            dweight + (program * K + k) * E + e,
            tl.sum(tl.where(tap[:, None] == k, sum_weight, 0.0), axis=0),
            mask=in_e,
        )
    tl.store(dbias + program * E + e, sum_bias, mask=in_e)
