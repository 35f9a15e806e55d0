# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The selective scan of Mamba in Triton, for many short sequences. Imported only if Triton is installed.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size; P: programs that share the
sequences; G: groups of BE channels; BS: S, rounded up to a power of two.

The (BE, BS) states of a program are in registers. The backward pass recomputes them into a scratch buffer of T states
per program, not per sequence.

A program processes every P-th sequence for one group of channels, all frames in order; per-channel values are loaded
once. Sums over sequences are written per program and sums over channels per group, and added by the caller: without
atomics, results are deterministic.

Activations have strides over sequences and frames (``u_n``, ``u_t``) and stride 1 over channels. All other tensors are
contiguous.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from ausm_d2.kernels.triton_math import row, sigmoid, softplus

_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _channels(A, D, delta_bias, E, S, BE: tl.constexpr, BS: tl.constexpr):
    """The program's channels e (BE,) and states s (BS,), whether they exist; the offsets in (E, S) of the cells
    (BE, BS), whether they exist; A / ln 2, D and the bias."""
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    s = tl.arange(0, BS)
    in_e, in_s = e < E, s < S
    cell, in_cell = e[:, None] * S + s[None, :], in_e[:, None] & in_s[None, :]
    exponent = tl.load(A + cell, mask=in_cell, other=0.0) / _LN2
    skip = tl.zeros((BE,), tl.float32)
    if D is not None:
        skip = row(D, 0, e, in_e)
    bias = tl.zeros((BE,), tl.float32)
    if delta_bias is not None:
        bias = row(delta_bias, 0, e, in_e)
    return e, s, in_e, in_s, cell, in_cell, exponent, skip, bias


@triton.jit
def _state(states, n, cell, in_cell, E, S, BE: tl.constexpr, BS: tl.constexpr):
    """(BE, BS): the state of sequence n, or its gradient; zeros where there is none."""
    state = tl.zeros((BE, BS), tl.float32)
    if states is not None:
        state = tl.load(states + n * E * S + cell, mask=in_cell, other=0.0)
    return state


@triton.jit
def _frame(u, u_at, delta, delta_at, bias, B, B_at, e, s, in_e, in_s, SOFTPLUS: tl.constexpr):
    """delta + bias, the step size (softplus of it), u and B of a frame."""
    raw = row(delta, delta_at, e, in_e) + bias
    dt = raw
    if SOFTPLUS:
        dt = softplus(raw)
    return raw, dt, row(u, u_at, e, in_e), row(B, B_at, s, in_s)


@triton.jit
def scan_forward(
    u, delta, z, B, C, y, A, D, delta_bias, initial, last,
    u_n, u_t, delta_n, delta_t, z_n, z_t, B_n, B_t, C_n, C_t,
    N, T, E, S,
    SOFTPLUS: tl.constexpr, BE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Writes y and last; grid (P, G)."""
    e, s, in_e, in_s, cell, in_cell, exponent, skip, bias = _channels(A, D, delta_bias, E, S, BE, BS)
    for sequence in range(tl.program_id(0), N, tl.num_programs(0)):
        n = tl.zeros((), tl.int64) + sequence
        h = _state(initial, n, cell, in_cell, E, S, BE, BS)
        for t in range(T):
            _, dt, x, b = _frame(
                u, n * u_n + t * u_t, delta, n * delta_n + t * delta_t, bias, B, n * B_n + t * B_t,
                e, s, in_e, in_s, SOFTPLUS,
            )  # fmt: skip
            c = row(C, n * C_n + t * C_t, s, in_s)
            h = tl.exp2(dt[:, None] * exponent) * h + (dt * x)[:, None] * b[None, :]
            out = tl.sum(h * c[None, :], axis=1) + skip * x
            if z is not None:
                gate = row(z, n * z_n + t * z_t, e, in_e)
                out *= gate * sigmoid(gate)
            tl.store(y + (n * T + t) * E + e, out.to(y.dtype.element_ty), mask=in_e)
        tl.store(last + n * E * S + cell, h, mask=in_cell)


@triton.jit
def _replay(
    h, u, delta, z, B, C, dy, dz, scratch, skip, bias, exponent, n, e, s, in_e, in_s,
    u_n, u_t, delta_n, delta_t, z_n, z_t, B_n, B_t, C_n, C_t, dy_n, dy_t,
    T, E,
    SOFTPLUS: tl.constexpr, BE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Runs the frames of a sequence again; writes the state before each to scratch, and dz. Returns the last state."""
    lane = tl.arange(0, BE)[:, None] * BS + s[None, :]
    for t in range(T):
        tl.store(scratch + t * BE * BS + lane, h)
        _, dt, x, b = _frame(
            u, n * u_n + t * u_t, delta, n * delta_n + t * delta_t, bias, B, n * B_n + t * B_t,
            e, s, in_e, in_s, SOFTPLUS,
        )  # fmt: skip
        h = tl.exp2(dt[:, None] * exponent) * h + (dt * x)[:, None] * b[None, :]
        if z is not None:
            c = row(C, n * C_n + t * C_t, s, in_s)
            out = tl.sum(h * c[None, :], axis=1) + skip * x
            gate = row(z, n * z_n + t * z_t, e, in_e)
            open_ = sigmoid(gate)
            g = row(dy, n * dy_n + t * dy_t, e, in_e) * out * open_ * (1.0 + gate * (1.0 - open_))
            tl.store(dz + (n * T + t) * E + e, g.to(dz.dtype.element_ty), mask=in_e)
    return h


@triton.jit
def scan_backward(
    u, delta, z, B, C, dy, A, D, delta_bias, initial, dlast,
    du, ddelta, dz, dB, dC, dA, dD, dbias, dinitial, scratch,
    u_n, u_t, delta_n, delta_t, z_n, z_t, B_n, B_t, C_n, C_t, dy_n, dy_t,
    N, T, E, S,
    SOFTPLUS: tl.constexpr, BE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Writes gradients: dB, dC (G, N, T, S), dA (P, E, S), dD and dbias (P, E), ...; scratch (P, G, T, BE, BS).
    Grid (P, G)."""
    program, group = tl.program_id(0), tl.program_id(1)
    e, s, in_e, in_s, cell, in_cell, exponent, skip, bias = _channels(A, D, delta_bias, E, S, BE, BS)
    lane = tl.arange(0, BE)[:, None] * BS + s[None, :]
    scratch += (program * tl.num_programs(1) + group).to(tl.int64) * T * BE * BS
    sum_A = tl.zeros((BE, BS), tl.float32)
    sum_D = tl.zeros((BE,), tl.float32)
    sum_bias = tl.zeros((BE,), tl.float32)
    for sequence in range(program, N, tl.num_programs(0)):
        n = tl.zeros((), tl.int64) + sequence
        h = _replay(
            _state(initial, n, cell, in_cell, E, S, BE, BS),
            u, delta, z, B, C, dy, dz, scratch, skip, bias, exponent, n, e, s, in_e, in_s,
            u_n, u_t, delta_n, delta_t, z_n, z_t, B_n, B_t, C_n, C_t, dy_n, dy_t,
            T, E, SOFTPLUS, BE, BS,
        )  # fmt: skip
        tl.debug_barrier()
        dh = _state(dlast, n, cell, in_cell, E, S, BE, BS)
        for i in range(T):
            t = T - 1 - i
            raw, dt, x, b = _frame(
                u, n * u_n + t * u_t, delta, n * delta_n + t * delta_t, bias, B, n * B_n + t * B_t,
                e, s, in_e, in_s, SOFTPLUS,
            )  # fmt: skip
            c = row(C, n * C_n + t * C_t, s, in_s)
            g = row(dy, n * dy_n + t * dy_t, e, in_e)
            if z is not None:
                gate = row(z, n * z_n + t * z_t, e, in_e)
                g *= gate * sigmoid(gate)
            dh += g[:, None] * c[None, :]
            at = ((group * N + n) * T + t) * S
            tl.store(dC + at + s, tl.sum(h * g[:, None], axis=0), mask=in_s)
            tl.store(dB + at + s, tl.sum(dh * (dt * x)[:, None], axis=0), mask=in_s)
            ddtx = tl.sum(dh * b[None, :], axis=1)
            h = tl.load(scratch + t * BE * BS + lane)
            dh *= tl.exp2(dt[:, None] * exponent)
            dexponent = dh * h
            sum_A += dexponent * dt[:, None]
            ddt = ddtx * x + tl.sum(dexponent * exponent, axis=1) * _LN2
            if SOFTPLUS:
                ddt *= sigmoid(raw)
            sum_bias += ddt
            sum_D += g * x
            place = (n * T + t) * E
            tl.store(du + place + e, (ddtx * dt + g * skip).to(du.dtype.element_ty), mask=in_e)
            tl.store(ddelta + place + e, ddt.to(ddelta.dtype.element_ty), mask=in_e)
        if dinitial is not None:
            tl.store(dinitial + n * E * S + cell, dh, mask=in_cell)
        tl.debug_barrier()
    tl.store(dA + program * E * S + cell, sum_A, mask=in_cell)
    tl.store(dD + program * E + e, sum_D, mask=in_e)
    tl.store(dbias + program * E + e, sum_bias, mask=in_e)
