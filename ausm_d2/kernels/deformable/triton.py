# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention in Triton, forward and backward. Imported where a GPU is (deformable_attention.py).

Shape shorthand:
    B: images
    S: pixels of all levels together; the queries are these pixels
    H: heads; C: channels of one
    L: levels
    P: sampling points per head and level
    BQ: queries that a program takes, of one image, for one head

Samples never lie in memory: a program gathers them, weighs them and adds them up in registers. ``grid_sample`` writes
and reads L * P numbers for each that comes out, and keeps them for the backward pass.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ausm_d2.kernels.kept import kept
from ausm_d2.kernels.triton_runs import launch

_QUERIES = 16  # of a program: as many as leave their sums in registers


@triton.jit
def _softmax(logits, first, SAMPLES: tl.constexpr, in_q):
    """(BQ,) the highest logit of every query, and the sum of the exponentials of what all are below it."""
    highest = tl.load(logits + first, mask=in_q, other=0.0).to(tl.float32)
    for i in range(1, SAMPLES):
        highest = tl.maximum(highest, tl.load(logits + first + i, mask=in_q, other=0.0).to(tl.float32))
    total = tl.zeros_like(highest)
    for i in range(SAMPLES):
        total += tl.exp(tl.load(logits + first + i, mask=in_q, other=0.0).to(tl.float32) - highest)
    return highest, total


@triton.jit
def _queries(centres, S, H, C, BQ: tl.constexpr):
    """(BQ,) rows of the program's queries among all of (B, S, H), whether there are such queries, where the values of
    their image and head begin, and (BQ,) x and y of the queries in [0, 1]."""
    q = tl.program_id(0) * BQ + tl.arange(0, BQ)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    in_q = q < S
    x_centre = tl.load(centres + 2 * q, mask=in_q, other=0.0)
    y_centre = tl.load(centres + 2 * q + 1, mask=in_q, other=0.0)
    return (image * S + q) * H + head, in_q, (image * S * H + head) * C, x_centre, y_centre


@triton.jit
def _place(offsets, sample, x_centre, y_centre, height, width, in_q):
    """(BQ,) whether a sample has anything but padding, the corner above and left of it, and how far it is from that."""
    x = x_centre * width - 0.5 + tl.load(offsets + 2 * sample, mask=in_q, other=0.0).to(tl.float32)
    y = y_centre * height - 0.5 + tl.load(offsets + 2 * sample + 1, mask=in_q, other=0.0).to(tl.float32)
    inside = in_q & (x > -1) & (y > -1) & (x < width) & (y < height)  # not, where it is not a number
    x, y = tl.where(inside, x, 0.0), tl.where(inside, y, 0.0)
    left, top = tl.floor(x), tl.floor(y)
    return inside, left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def _corner(values, pixel, c, inside, x, y, height, width, H, C):
    """(BQ, BC) what lies at a corner, where it lies, and where that is in the level."""
    there = (inside & (x >= 0) & (x < width) & (y >= 0) & (y < height))[:, None] & (c < C)[None, :]
    place = (pixel + y * width + x)[:, None] * H * C + c[None, :]
    return tl.load(values + place, mask=there, other=0.0).to(tl.float32), place, there


@triton.jit
def forward_kernel(
    values, offsets, logits, centres, levels, out, S, H, C,
    L: tl.constexpr, P: tl.constexpr, BQ: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out (B, S, H, C); centres (S, 2), x and y of every pixel in [0, 1]; levels (L, 3): height, width, first pixel;
    grid (S / BQ, H, B)."""
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
def backward_kernel(
    values, offsets, logits, centres, levels, dout, dvalues, doffsets, dlogits, S, H, C,
    L: tl.constexpr, P: tl.constexpr, BQ: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients, all float32; dvalues is added to, in no order, as ``grid_sample`` does. The grid is that of
    :func:`forward_kernel`."""
    row, in_q, plane, x_centre, y_centre = _queries(centres, S, H, C, BQ)
    c = tl.arange(0, BC)
    highest, total = _softmax(logits, row * (L * P), L * P, in_q)
    g = tl.load(dout + row[:, None] * C + c[None, :], mask=in_q[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    values += plane
    dvalues += plane
    mean = tl.zeros((BQ,), tl.float32)  # of what the samples are worth
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


@kept(maxsize=128)
def _grids(sizes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """centres and levels of :func:`forward_kernel`."""
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
        _launch(forward_kernel, (values, offsets, logits, *_grids(sizes, values.device), out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        values, offsets, logits = ctx.saved_tensors
        dvalues = torch.zeros_like(values, dtype=torch.float32)
        doffsets, dlogits = (torch.empty_like(each, dtype=torch.float32) for each in (offsets, logits))
        inputs = (values, offsets, logits, *_grids(ctx.sizes, values.device), dout.contiguous())
        _launch(backward_kernel, (*inputs, dvalues, doffsets, dlogits))
        return dvalues.to(values.dtype), doffsets.to(offsets.dtype), dlogits.to(logits.dtype), None


def _launch(kernel: Any, tensors: tuple[Tensor, ...]) -> None:
    values, _, logits, *_ = tensors
    batch, pixels, heads, channels = values.shape
    levels, points = logits.shape[3:]
    grid = (triton.cdiv(pixels, _QUERIES), heads, batch)
    launch(
        kernel,
        grid,
        values,
        *tensors,
        *(pixels, heads, channels),
        L=levels,
        P=points,
        BQ=_QUERIES,
        BC=triton.next_power_of_2(channels),
    )


def attend(values: Tensor, offsets: Tensor, logits: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """
    Args:
        values: (B, S, H, C) of the pixels.
        offsets: (B, S, H, L, P, 2), x and y, in pixels of the level.
        logits: (B, S, H, L, P) of the weights.
        sizes: height and width of each level.

    Returns:
        (B, S, H, C), in the dtype of ``values``; weights, coordinates and sums are float32. A sample whose place is not
        a number counts as padding.

    Raises:
        ValueError: if the sizes are not those of the tensors.
    """
    if len(sizes) != logits.shape[3] or sum(height * width for height, width in sizes) != values.shape[1]:
        raise ValueError(f"levels of {list(sizes)} for {values.shape[1]} pixels of {logits.shape[3]} levels")
    return _Attend.apply(values.contiguous(), offsets.contiguous(), logits.contiguous(), tuple(sizes))
