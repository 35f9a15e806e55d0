# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The C++ kernels of depthwise, separable and 3 x 3 convolution and group norm, against PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.choice import Kernel
from ausm_d2.kernels.depthwise import DEPTHWISE
from ausm_d2.kernels.depthwise.call import DepthwiseCall
from ausm_d2.kernels.group_norm import GROUP_NORM
from ausm_d2.kernels.group_norm.call import GroupNormCall
from ausm_d2.kernels.separable import SEPARABLE
from ausm_d2.kernels.separable import cpu as separable_cpu
from ausm_d2.kernels.separable.call import SeparableCall
from ausm_d2.kernels.winograd import CONV3X3
from ausm_d2.kernels.winograd.call import Conv3x3Call


def run(operation: Any, call: Any) -> Tensor:
    """By the C++ kernel, which has to be the one that is taken."""
    kernel: Kernel[Any] = operation.kernels[0]
    if (reason := kernel.unavailable()) is not None:
        pytest.skip(reason)
    assert kernel.fits(call)
    return kernel.run(call)[0]


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (0, 1, 0, 1), (1, 2, 2, 1), (4, 4, 4, 4)])
@pytest.mark.parametrize("size", [(5, 5), (7, 29)])
@torch.no_grad()
def test_depthwise(side: int, stride: int, padding: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    x, weight, bias = torch.randn(2, 32, *size), torch.randn(side, side, 32), torch.randn(32)
    call = DepthwiseCall(x, weight, bias, stride, padding, -0.5, 2.0)
    wide = DepthwiseCall(x.double(), weight.double(), bias.double(), stride, padding, -0.5, 2.0)
    close(run(DEPTHWISE, call), DEPTHWISE.reference(wide)[0])


@torch.no_grad()
def test_depthwise_without_limits_clamps_nothing() -> None:
    x, weight = 1e30 * torch.randn(1, 16, 9, 9), torch.randn(3, 3, 16)
    call = DepthwiseCall(x, weight, torch.zeros(16), 1, (1, 1, 1, 1), float("-inf"), float("inf"))
    close(run(DEPTHWISE, call), DEPTHWISE.reference(call)[0].double())


@pytest.mark.parametrize("size", [(32, 33), (29, 42), (3, 270)])
def test_winograd_and_its_gradients(size: tuple[int, int]) -> None:
    x = torch.randn(2, 48, *size, requires_grad=True)
    weight = (torch.randn(64, 48, 3, 3) / 20).requires_grad_()
    wide = [each.detach().double().requires_grad_() for each in (x, weight)]
    y, expected = run(CONV3X3, Conv3x3Call(x, weight)), F.conv2d(*wide, padding=1)
    close(y, expected, 2e-5)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, weight), dy)
    for each, right in zip(found, torch.autograd.grad(expected, wide, dy.double()), strict=True):
        close(each, right, 3e-5)


def test_winograd_is_not_taken_for_few_channels_or_pixels_or_other_dtypes() -> None:
    kernel = CONV3X3.kernels[0]
    if (reason := kernel.unavailable()) is not None:
        pytest.skip(reason)
    x, weight = torch.randn(1, 96, 32, 32), torch.randn(96, 96, 3, 3)
    assert kernel.fits(Conv3x3Call(x, weight))
    assert not kernel.fits(Conv3x3Call(x[:, :32], weight[:, :32]))
    assert not kernel.fits(Conv3x3Call(x[..., :16], weight))
    assert not kernel.fits(Conv3x3Call(x.bfloat16(), weight.bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernel.fits(Conv3x3Call(x, weight))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("mean", [0.0, 300.0])  # far from zero: E[x^2] - E[x]^2 would have no digits left
@torch.no_grad()
def test_group_norm(mean: float, adds: bool, relu: bool, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = (torch.randn(2, 96, 17, 23) + mean).contiguous(memory_format=torch.channels_last)
    weight, bias, add = torch.randn(96), torch.randn(96), torch.randn(2, 96, 17, 23)
    found = run(GROUP_NORM, GroupNormCall(x, 32, weight, bias, 1e-5, relu, add if adds else None))
    expected = F.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-5) + (add.double() if adds else 0)
    close(found, expected.relu() if relu else expected, 2e-6 if mean == 0 else 1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(1, 3), (5, 9), (3, 70)])
@torch.no_grad()
def test_separable_block(size: tuple[int, int], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(separable_cpu, "is_faster", lambda: True)  # with AVX-512 it is not, but right all the same
    shapes = [(2, 48, *size), (48, 1, 3, 3), *[(48,)] * 3, (48, 48), *[(48,)] * 3]
    call = SeparableCall(*(torch.randn(*shape) for shape in shapes), 16, 8, 1e-5, 1e-2)
    wide = SeparableCall(*(each.double() for each in call[:9]), *call[9:])
    close(run(SEPARABLE, call), SEPARABLE.reference(wide)[0], 5e-6)
