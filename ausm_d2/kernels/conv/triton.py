# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The causal convolution in Triton: triton_kernels.py.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; K: width of the convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ausm_d2.kernels import triton_launch
from ausm_d2.kernels.conv.call import ConvCall
from ausm_d2.kernels.conv.fused import FusedConv
from ausm_d2.kernels.fused import Gradients
from ausm_d2.kernels.triton_launch import CHANNELS, Launcher, shared_grid, strides

launch = Launcher(__package__)


class TritonConv(FusedConv):
    name = "triton"
    devices = triton_launch.DEVICES
    dtypes = triton_launch.DTYPES

    def unavailable(self) -> str | None:
        return triton_launch.why_not()

    def forward(self, call: ConvCall, last: Tensor) -> Tensor:
        x = call.x
        y = x.new_empty(x.shape)
        sizes = (*strides(x), *x.shape)
        launch("conv_forward", shared_grid(x), x, *call[:4], y, last, *sizes, **_options(call))
        return y

    def backward(self, call: ConvCall, dy: Tensor, dlast: Tensor | None, start: bool) -> Gradients:
        x, grid = call.x, shared_grid(call.x)
        dx = x.new_empty(x.shape)
        gradient = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        dweight, dbias = (like.new_empty(grid[0], *like.shape) for like in (call.weight, call.bias))
        dinitial = torch.empty_like(call.initial) if start and call.initial is not None else None
        tensors = (*call[:4], dy, dlast, dx, dinitial, gradient, dweight, dbias)
        sizes = (*strides(x), *strides(dy), *x.shape)
        launch("conv_backward", grid, x, *tensors, *sizes, **_options(call))
        return dx, dweight.sum(0), dbias.sum(0), dinitial


def _options(call: ConvCall) -> dict[str, int]:
    return {"K": len(call.weight), "BE": CHANNELS}
