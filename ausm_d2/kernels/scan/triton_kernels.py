# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The two recurrent operations of Mamba in Triton: many sequences, few frames each. Imported where a GPU is (gpu.py).

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size; K: width of the convolution;
P: programs that share the sequences; G: groups of BE channels.

A program takes every P-th sequence, a group of channels of it, through all frames, with the (BE, BS) states in
registers and what depends on the channel only (A, D, bias) loaded once for all its sequences. The backward pass
recomputes the states into a scratch of T states per program, not per sequence. Sums over sequences are kept per program
and sums over channels per group, to be added by the caller: no atomics, so the results are the same every time.

Activations are addressed as (sequence, frame) strides with rows without gaps; what has no strides here is contiguous.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x):
    # log(1 + e) loses the digits of a small e; log(w) e / (w - 1) with w = 1 + e as rounded gives them back.
    e = tl.exp(-tl.abs(x))
    w = 1.0 + e
    return tl.maximum(x, 0.0) + tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def _row(pointer, offset, index, valid):
    return tl.load(pointer + offset + index, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def scan_forward(
    u, delta, z, B, C, y, A, D, delta_bias, initial, last,
    u_n, u_t, delta_n, delta_t, z_n, z_t, B_n, B_t, C_n, C_t,
    N, T, E, S,
    SOFTPLUS: tl.constexpr, BE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """y and last; grid (P, G)."""
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    s = tl.arange(0, BS)
    in_e, in_s = e < E, s < S
    cell, in_cell = e[:, None] * S + s[None, :], in_e[:, None] & in_s[None, :]
    exponent = tl.load(A + cell, mask=in_cell, other=0.0) / _LN2
    skip = tl.zeros((BE,), tl.float32)
    if D is not None:
        skip = _row(D, 0, e, in_e)
    bias = tl.zeros((BE,), tl.float32)
    if delta_bias is not None:
        bias = _row(delta_bias, 0, e, in_e)
    for sequence in range(tl.program_id(0), N, tl.num_programs(0)):
        n = tl.zeros((), tl.int64) + sequence
        h = tl.zeros((BE, BS), tl.float32)
        if initial is not None:
            h = tl.load(initial + n * E * S + cell, mask=in_cell, other=0.0)
        for t in range(T):
            dt = _row(delta, n * delta_n + t * delta_t, e, in_e) + bias
            if SOFTPLUS:
                dt = _softplus(dt)
            x = _row(u, n * u_n + t * u_t, e, in_e)
            b = _row(B, n * B_n + t * B_t, s, in_s)
            c = _row(C, n * C_n + t * C_t, s, in_s)
            h = tl.exp2(dt[:, None] * exponent) * h + (dt * x)[:, None] * b[None, :]
            out = tl.sum(h * c[None, :], axis=1) + skip * x
            if z is not None:
                gate = _row(z, n * z_n + t * z_t, e, in_e)
                out *= gate * _sigmoid(gate)
            tl.store(y + (n * T + t) * E + e, out.to(y.dtype.element_ty), mask=in_e)
        tl.store(last + n * E * S + cell, h, mask=in_cell)


@triton.jit
def scan_backward(
    u, delta, z, B, C, dy, A, D, delta_bias, initial, dlast,
    du, ddelta, dz, dB, dC, dA, dD, dbias, dinitial, scratch,
    u_n, u_t, delta_n, delta_t, z_n, z_t, B_n, B_t, C_n, C_t, dy_n, dy_t,
    N, T, E, S,
    SOFTPLUS: tl.constexpr, BE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Gradients; dB, dC (G, N, T, S), dA (P, E, S), dD and dbias (P, E), scratch (P, G, T, BE, BS); grid (P, G)."""
    program, group = tl.program_id(0), tl.program_id(1)
    e = group * BE + tl.arange(0, BE)
    s = tl.arange(0, BS)
    in_e, in_s = e < E, s < S
    cell, in_cell = e[:, None] * S + s[None, :], in_e[:, None] & in_s[None, :]
    lane = tl.arange(0, BE)[:, None] * BS + s[None, :]
    scratch += (program * tl.num_programs(1) + group).to(tl.int64) * T * BE * BS
    exponent = tl.load(A + cell, mask=in_cell, other=0.0) / _LN2
    skip = tl.zeros((BE,), tl.float32)
    if D is not None:
        skip = _row(D, 0, e, in_e)
    bias = tl.zeros((BE,), tl.float32)
    if delta_bias is not None:
        bias = _row(delta_bias, 0, e, in_e)
    sum_A = tl.zeros((BE, BS), tl.float32)
    sum_D = tl.zeros((BE,), tl.float32)
    sum_bias = tl.zeros((BE,), tl.float32)
    for sequence in range(program, N, tl.num_programs(0)):
        n = tl.zeros((), tl.int64) + sequence
        h = tl.zeros((BE, BS), tl.float32)
        if initial is not None:
            h = tl.load(initial + n * E * S + cell, mask=in_cell, other=0.0)
        for t in range(T):
            tl.store(scratch + t * BE * BS + lane, h)  # the state before frame t
            dt = _row(delta, n * delta_n + t * delta_t, e, in_e) + bias
            if SOFTPLUS:
                dt = _softplus(dt)
            x = _row(u, n * u_n + t * u_t, e, in_e)
            b = _row(B, n * B_n + t * B_t, s, in_s)
            h = tl.exp2(dt[:, None] * exponent) * h + (dt * x)[:, None] * b[None, :]
            if z is not None:
                c = _row(C, n * C_n + t * C_t, s, in_s)
                out = tl.sum(h * c[None, :], axis=1) + skip * x
                gate = _row(z, n * z_n + t * z_t, e, in_e)
                open_ = _sigmoid(gate)
                g = _row(dy, n * dy_n + t * dy_t, e, in_e) * out * open_ * (1.0 + gate * (1.0 - open_))
                tl.store(dz + (n * T + t) * E + e, g.to(dz.dtype.element_ty), mask=in_e)
        tl.debug_barrier()
        dh = tl.zeros((BE, BS), tl.float32)
        if dlast is not None:
            dh = tl.load(dlast + n * E * S + cell, mask=in_cell, other=0.0)
        for i in range(T):
            t = T - 1 - i
            raw = _row(delta, n * delta_n + t * delta_t, e, in_e) + bias
            dt = raw
            if SOFTPLUS:
                dt = _softplus(raw)
            x = _row(u, n * u_n + t * u_t, e, in_e)
            b = _row(B, n * B_n + t * B_t, s, in_s)
            c = _row(C, n * C_n + t * C_t, s, in_s)
            g = _row(dy, n * dy_n + t * dy_t, e, in_e)
            if z is not None:
                gate = _row(z, n * z_n + t * z_t, e, in_e)
                g *= gate * _sigmoid(gate)
            dh += g[:, None] * c[None, :]
            at = (group * N + n) * T + t
            tl.store(dC + at * S + s, tl.sum(h * g[:, None], axis=0), mask=in_s)
            tl.store(dB + at * S + s, tl.sum(dh * (dt * x)[:, None], axis=0), mask=in_s)
            ddtx = tl.sum(dh * b[None, :], axis=1)
            h = tl.load(scratch + t * BE * BS + lane)
            dh *= tl.exp2(dt[:, None] * exponent)
            dexponent = dh * h
            sum_A += dexponent * dt[:, None]
            ddt = ddtx * x + tl.sum(dexponent * exponent, axis=1) * _LN2
            if SOFTPLUS:
                ddt *= _sigmoid(raw)
            sum_bias += ddt
            sum_D += g * x
            row = (n * T + t) * E
            tl.store(du + row + e, (ddtx * dt + g * skip).to(du.dtype.element_ty), mask=in_e)
            tl.store(ddelta + row + e, ddt.to(ddelta.dtype.element_ty), mask=in_e)
        if dinitial is not None:
            tl.store(dinitial + n * E * S + cell, dh, mask=in_cell)
        tl.debug_barrier()
    tl.store(dA + program * E * S + cell, sum_A, mask=in_cell)
    tl.store(dD + program * E + e, sum_D, mask=in_e)
    tl.store(dbias + program * E + e, sum_bias, mask=in_e)


@triton.jit
def _input(x, initial, n, t, x_n, x_t, e, in_e, E, K: tl.constexpr):
    """(BE,): the input of frame t, those before the first one from ``initial``."""
    if t >= 0:
        value = _row(x, n * x_n + t * x_t, e, in_e)
    else:
        value = tl.zeros_like(e).to(tl.float32)
        if initial is not None:
            value = _row(initial, n * E * K, e * K + K + t, in_e)
    return value


@triton.jit
def conv_forward(
    x, weight, bias, initial, y, last, x_n, x_t, N, T, E, K: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """y and last; grid (P, G)."""
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    in_e = e < E
    offset = _row(bias, 0, e, in_e)
    for sequence in range(tl.program_id(0), N, tl.num_programs(0)):
        n = tl.zeros((), tl.int64) + sequence
        for t in range(T):
            out = offset
            for k in tl.static_range(K):
                out += _row(weight, k * E, e, in_e) * _input(x, initial, n, t + k - K + 1, x_n, x_t, e, in_e, E, K)
            tl.store(y + (n * T + t) * E + e, (out * _sigmoid(out)).to(y.dtype.element_ty), mask=in_e)
        # From the oldest on: where last is initial itself, an entry is read, by every thread, before it is overwritten.
        for k in tl.static_range(K):
            tl.debug_barrier()
            value = _input(x, initial, n, T + k - K, x_n, x_t, e, in_e, E, K)
            tl.store(last + n * E * K + e * K + k, value.to(last.dtype.element_ty), mask=in_e)


@triton.jit
def conv_backward(
    x, weight, bias, initial, dy, dlast, dx, dinitial, gradient, dweight, dbias,
    x_n, x_t, dy_n, dy_t, N, T, E, K: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Gradients; dweight (P, K, E), dbias (P, E), gradient (N, T, E) a scratch in float32; grid (P, G)."""
    program = tl.program_id(0)
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    in_e = e < E
    offset = _row(bias, 0, e, in_e)
    sum_bias = tl.zeros((BE,), tl.float32)
    tap = tl.arange(0, triton.next_power_of_2(K))
    sum_weight = tl.zeros((triton.next_power_of_2(K), BE), tl.float32)
    for sequence in range(program, N, tl.num_programs(0)):
        n = tl.zeros((), tl.int64) + sequence
        for t in range(T):
            out = offset
            for k in tl.static_range(K):
                out += _row(weight, k * E, e, in_e) * _input(x, initial, n, t + k - K + 1, x_n, x_t, e, in_e, E, K)
            open_ = _sigmoid(out)
            g = _row(dy, n * dy_n + t * dy_t, e, in_e) * open_ * (1.0 + out * (1.0 - open_))
            tl.store(gradient + (n * T + t) * E + e, g, mask=in_e)
            sum_bias += g
            for k in tl.static_range(K):
                seen = _input(x, initial, n, t + k - K + 1, x_n, x_t, e, in_e, E, K)
                sum_weight += tl.where(tap[:, None] == k, (g * seen)[None, :], 0.0)
        tl.debug_barrier()
        for i in range(T + K):  # the input of frame i - K; the first K are those before the clip
            d = tl.zeros((BE,), tl.float32)
            for k in tl.static_range(K):
                later = i - 1 - k  # the frame that weighs this input with weight k
                if (later >= 0) & (later < T):
                    d += _row(weight, k * E, e, in_e) * _row(gradient, (n * T + later) * E, e, in_e)
            if dlast is not None:  # noqa: SIM102  (known when compiling, the other is not)
                if i >= T:
                    d += _row(dlast, n * E * K, e * K + i - T, in_e)
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
