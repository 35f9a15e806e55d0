# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The causal convolution in C++: conv.cpp, called with addresses and strides.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; K: width of the convolution.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.conv.fused import ConvInputs, FusedConv
from ausm_d2.kernels.structs import Rows, address, fields, floats, share

SOURCE = Path(__file__).with_name("conv.cpp")


class _Conv(ctypes.Structure):
    """``Conv`` of conv.cpp."""

    _fields_ = fields(
        "N T E K",
        "threads parts bfloat16 reserved",
        (Rows, "x y"),
        (ctypes.c_void_p, "weight bias initial last"),
        (Rows, "dy dx"),
        (ctypes.c_void_p, "dlast dweight dbias dinitial"),
    )


class CpuConv(FusedConv):
    name = "cpu"
    devices = ("cpu",)
    dtypes = (torch.float32, torch.bfloat16)

    def unavailable(self) -> str | None:
        return cpp.why_not(SOURCE)

    def forward(self, inputs: ConvInputs, last: Tensor) -> Tensor:
        y = inputs.x.new_empty(inputs.x.shape)
        arguments = _arguments(inputs)
        arguments.y, arguments.last = Rows(y), address(last)
        cpp.library(SOURCE).ausm_conv_forward(ctypes.byref(arguments))
        return y

    def backward(self, inputs: ConvInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ConvInputs:
        arguments = _arguments(inputs)
        dx = inputs.x.new_empty(inputs.x.shape)
        dweight, dbias = (floats(arguments.parts, *like.shape) for like in (inputs.weight, inputs.bias))
        dinitial = torch.empty_like(inputs.initial) if start and inputs.initial is not None else None
        arguments.dy, arguments.dx = Rows(dy), Rows(dx)
        for name, tensor in (("dlast", dlast), ("dweight", dweight), ("dbias", dbias), ("dinitial", dinitial)):
            setattr(arguments, name, address(tensor))
        cpp.library(SOURCE).ausm_conv_backward(ctypes.byref(arguments))
        return ConvInputs(dx, dweight.sum(0), dbias.sum(0), dinitial)


def _arguments(inputs: ConvInputs) -> _Conv:
    sequences, frames, channels = inputs.x.shape
    return _Conv(
        N=sequences,
        T=frames,
        E=channels,
        K=len(inputs.weight),
        **share(inputs.x),
        bfloat16=inputs.x.dtype == torch.bfloat16,
        x=Rows(inputs.x),
        **{name: address(getattr(inputs, name)) for name in ("weight", "bias", "initial")},
    )
