# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""All kernels of the causal convolution against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from ausm_d2.kernels.choice import use_kernels
from ausm_d2.kernels.conv import causal_conv
from tests.kernels.interpreter import INTERPRETED
from tests.kernels.oracle import assert_near

SIZES, FRAMES = [(3, 1, 37, 4), (2, 2, 16, 4), (1, 6, 33, 3), (2, 3, 8, 1)], [1, 2]  # N, T, E, K
CASES = [(size, start) for size in SIZES for start in ("zero", "given")]
if INTERPRETED:  # two groups of channels, more sequences than programs
    CASES, FRAMES = [((1, 3, 66, 3), "given"), ((5, 1, 5, 2), "zero")], [2]


@pytest.mark.parametrize(("size", "start"), CASES, ids=str)
def test_conv_equals_float64_loop(backend: str, size: tuple[int, int, int, int], start: str) -> None:
    _compare_conv(size, start == "given", torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frames", FRAMES)
def test_conv_of_half_precision_activations(backend: str, dtype: torch.dtype, frames: int) -> None:
    _compare_conv((1, frames, 33, 4), True, dtype)


def _compare_conv(size: tuple[int, int, int, int], start_given: bool, dtype: torch.dtype) -> None:
    n, t, e, k = size
    inputs = [torch.randn(n, t, 2 * e)[..., :e].to(dtype), torch.randn(e, k), torch.randn(e)]
    if start_given:
        inputs.append(torch.randn(n, e, k).to(dtype))
    exact = [value.double() for value in inputs]
    for value in inputs + exact:
        value.requires_grad_()
    y, last = causal_conv(*inputs)
    assert y.dtype == last.dtype == dtype
    with use_kernels("reference"):
        y64, last64 = causal_conv(*exact)
    exactness = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert_near(y.detach(), y64.detach(), exactness)
    assert_near(last.detach(), last64.detach(), exactness)
    dy, dlast = torch.randn_like(y), torch.randn_like(last)
    found = torch.autograd.grad((y, last), inputs, (dy, dlast))
    expected = torch.autograd.grad((y64, last64), exact, (dy.double(), dlast.double()))
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b, 10 * exactness)


@torch.no_grad()
def test_conv_in_place(backend: str) -> None:
    x, weight, bias, state = torch.randn(4, 1, 20), torch.randn(20, 4), torch.randn(20), torch.randn(4, 20, 4)
    expected, expected_last = causal_conv(x, weight, bias, state)
    y, last = causal_conv(x, weight, bias, state, inplace=True)
    assert last.data_ptr() == state.data_ptr()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_last)
