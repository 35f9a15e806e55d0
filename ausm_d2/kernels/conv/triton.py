# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The causal convolution in Triton: triton_kernels.py.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; K: width of the convolution.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ausm_d2.kernels import triton_launch
from ausm_d2.kernels.conv.fused import ConvInputs, FusedConv
from ausm_d2.kernels.triton_launch import CHANNELS, shared_grid, strides


@functools.cache
def _kernels() -> Any:
    """Imported at first use: Triton may be missing, and its import is slow."""
    from ausm_d2.kernels.conv import triton_kernels

    return triton_kernels


class TritonConv(FusedConv):
    name = "triton"
    devices = triton_launch.DEVICES
    dtypes = triton_launch.DTYPES

    def unavailable(self) -> str | None:
        return triton_launch.why_not()

    def forward(self, inputs: ConvInputs, last: Tensor) -> Tensor:
        x = inputs.x
        y = x.new_empty(x.shape)
        _launch("conv_forward", x, *inputs, y, last, *strides(x), *x.shape, K=len(inputs.weight), BE=CHANNELS)
        return y

    def backward(self, inputs: ConvInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ConvInputs:
        x = inputs.x
        programs, _ = shared_grid(x)
        dx = x.new_empty(x.shape)
        gradient = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        dweight, dbias = (like.new_empty(programs, *like.shape) for like in (inputs.weight, inputs.bias))
        dinitial = torch.empty_like(inputs.initial) if start and inputs.initial is not None else None
        tensors = (*inputs, dy, dlast, dx, dinitial, gradient, dweight, dbias)
        sizes = (*strides(x), *strides(dy), *x.shape)
        _launch("conv_backward", x, *tensors, *sizes, K=len(inputs.weight), BE=CHANNELS)
        return ConvInputs(dx, dweight.sum(0), dbias.sum(0), dinitial)


def _launch(kernel: str, x: Tensor, *arguments: Any, **options: Any) -> None:
    triton_launch.launch(getattr(_kernels(), kernel), shared_grid(x), x, *arguments, **options)
