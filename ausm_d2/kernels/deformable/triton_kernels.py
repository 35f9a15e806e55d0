# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention in Triton, forward and backward. Imported only if Triton is installed.

Shape shorthand:
    B: frames
    S: pixels of all levels together; they are the queries and the keys
    H: heads; C: channels of a head
    L: levels
    P: sampling points per head and level
    BQ: queries per program, of one frame and one head; BC: C, rounded up to a power of two

Samples are never written to memory: a program gathers, weighs and sums them in registers. ``grid_sample`` writes and
reads L * P numbers per output number, and stores them for the backward pass.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _softmax(logits, first, SAMPLES: tl.constexpr, in_q):
    """(BQ,) the largest logit of every query, and the sum of exp(logit - largest)."""
    highest = tl.load(logits + first, mask=in_q, other=0.0).to(tl.float32)
    for i in range(1, SAMPLES):
        highest = tl.maximum(highest, tl.load(logits + first + i, mask=in_q, other=0.0).to(tl.float32))
    total = tl.zeros_like(highest)
    for i in range(SAMPLES):
        total += tl.exp(tl.load(logits + first + i, mask=in_q, other=0.0).to(tl.float32) - highest)
    return highest, total


@triton.jit
def _queries(centres, S, H, C, BQ: tl.constexpr):
    """(BQ,) flat indices of the program's queries in (B, S, H), (BQ,) whether they exist, the offset of the values of
    their frame and head, and (BQ,) x and y of the queries in [0, 1]."""
    q = tl.program_id(0) * BQ + tl.arange(0, BQ)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    in_q = q < S
    x_centre = tl.load(centres + 2 * q, mask=in_q, other=0.0)
    y_centre = tl.load(centres + 2 * q + 1, mask=in_q, other=0.0)
    return (image * S + q) * H + head, in_q, (image * S * H + head) * C, x_centre, y_centre


@triton.jit
def _place(offsets, sample, x_centre, y_centre, height, width, in_q):
    """(BQ,) whether a sample touches the level, column and row of its top left corner, and its distance from there."""
    x = x_centre * width - 0.5 + tl.load(offsets + 2 * sample, mask=in_q, other=0.0).to(tl.float32)
    y = y_centre * height - 0.5 + tl.load(offsets + 2 * sample + 1, mask=in_q, other=0.0).to(tl.float32)
    inside = in_q & (x > -1) & (y > -1) & (x < width) & (y < height)  # False for NaN
    x, y = tl.where(inside, x, 0.0), tl.where(inside, y, 0.0)
    left, top = tl.floor(x), tl.floor(y)
    return inside, left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def _corner(values, pixel, c, inside, x, y, height, width, H, C):
    """(BQ, BC) the values at a corner, their offsets, and whether the corner is inside the level."""
    there = (inside & (x >= 0) & (x < width) & (y >= 0) & (y < height))[:, None] & (c < C)[None, :]
    place = (pixel + y * width + x)[:, None] * H * C + c[None, :]
    return tl.load(values + place, mask=there, other=0.0).to(tl.float32), place, there


@triton.jit
def deformable_forward(
    values, offsets, logits, centres, levels, out, S, H, C,
    L: tl.constexpr, P: tl.constexpr, BQ: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Writes out (B, S, H, C). centres (S, 2): x and y of every pixel in [0, 1]; levels (L, 3): height, width, first
    pixel. Grid (S / BQ, H, B)."""
    row, in_q, plane, x_centre, y_centre = _queries(centres, S, H, C, BQ)
    c = tl.arange(0, BC)
    highest, total = _softmax(logits, row * (L * P), L * P, in_q)
    values += plane
    sums = tl.zeros((BQ, BC), tl.float32)
    for level in range(L):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        pixel = tl.load(levels + 3 * level + 2)
        for point in range(P):
            sample = row * (L * P) + level * P + point
            inside, x, y, right, bottom = _place(offsets, sample, x_centre, y_centre, height, width, in_q)
            weight = tl.exp(tl.load(logits + sample, mask=in_q, other=0.0).to(tl.float32) - highest)
            above, below = weight * (1 - bottom), weight * bottom
            value, _, _ = _corner(values, pixel, c, inside, x, y, height, width, H, C)
            sums += (above * (1 - right))[:, None] * value
            value, _, _ = _corner(values, pixel, c, inside, x + 1, y, height, width, H, C)
            sums += (above * right)[:, None] * value
            value, _, _ = _corner(values, pixel, c, inside, x, y + 1, height, width, H, C)
            sums += (below * (1 - right))[:, None] * value
            value, _, _ = _corner(values, pixel, c, inside, x + 1, y + 1, height, width, H, C)
            sums += (below * right)[:, None] * value
    place = row[:, None] * C + c[None, :]
    tl.store(out + place, (sums / total[:, None]).to(out.dtype.element_ty), mask=in_q[:, None] & (c < C)[None, :])


@triton.jit
def deformable_backward(
    values, offsets, logits, centres, levels, dout, dvalues, doffsets, dlogits, S, H, C,
    L: tl.constexpr, P: tl.constexpr, BQ: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Writes gradients, float32. dvalues is accumulated with atomics, in no fixed order, as in ``grid_sample``. Grid as
    in :func:`deformable_forward`."""
    row, in_q, plane, x_centre, y_centre = _queries(centres, S, H, C, BQ)
    c = tl.arange(0, BC)
    highest, total = _softmax(logits, row * (L * P), L * P, in_q)
    g = tl.load(dout + row[:, None] * C + c[None, :], mask=in_q[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    values += plane
    dvalues += plane
    mean = tl.zeros((BQ,), tl.float32)  # weighted mean of the gradients of the samples' weights
    for level in range(L):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        pixel = tl.load(levels + 3 * level + 2)
        for point in range(P):
            sample = row * (L * P) + level * P + point
            inside, x, y, right, bottom = _place(offsets, sample, x_centre, y_centre, height, width, in_q)
            weight = tl.exp(tl.load(logits + sample, mask=in_q, other=0.0).to(tl.float32) - highest) / total
            value, place, there = _corner(values, pixel, c, inside, x, y, height, width, H, C)
            tl.atomic_add(
                dvalues + place, (weight * (1 - bottom) * (1 - right))[:, None] * g, mask=there, sem="relaxed"
            )
            top_left = tl.sum(value * g, axis=1)
            value, place, there = _corner(values, pixel, c, inside, x + 1, y, height, width, H, C)
            tl.atomic_add(dvalues + place, (weight * (1 - bottom) * right)[:, None] * g, mask=there, sem="relaxed")
            top_right = tl.sum(value * g, axis=1)
            value, place, there = _corner(values, pixel, c, inside, x, y + 1, height, width, H, C)
            tl.atomic_add(dvalues + place, (weight * bottom * (1 - right))[:, None] * g, mask=there, sem="relaxed")
            bottom_left = tl.sum(value * g, axis=1)
            value, place, there = _corner(values, pixel, c, inside, x + 1, y + 1, height, width, H, C)
            tl.atomic_add(dvalues + place, (weight * bottom * right)[:, None] * g, mask=there, sem="relaxed")
            bottom_right = tl.sum(value * g, axis=1)
            above = top_left + (top_right - top_left) * right
            below = bottom_left + (bottom_right - bottom_left) * right
            worth = above + (below - above) * bottom
            across = (top_right - top_left) * (1 - bottom) + (bottom_right - bottom_left) * bottom
            tl.store(doffsets + 2 * sample, weight * across, mask=in_q)
            tl.store(doffsets + 2 * sample + 1, weight * (below - above), mask=in_q)
            tl.store(dlogits + sample, worth, mask=in_q)
            mean += weight * worth
    tl.debug_barrier()
    for i in range(L * P):
        sample = row * (L * P) + i
        weight = tl.exp(tl.load(logits + sample, mask=in_q, other=0.0).to(tl.float32) - highest) / total
        worth = tl.load(dlogits + sample, mask=in_q, other=0.0)
        tl.store(dlogits + sample, weight * (worth - mean), mask=in_q)
