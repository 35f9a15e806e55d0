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
from ausm_d2.kernels.conv.call import ConvCall
from ausm_d2.kernels.conv.fused import FusedConv
from ausm_d2.kernels.fused import Gradients
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

    def forward(self, call: ConvCall, last: Tensor) -> Tensor:
        y = call.x.new_empty(call.x.shape)
        arguments = _arguments(call)
        arguments.y, arguments.last = Rows(y), address(last)
        cpp.library(SOURCE).ausm_conv_forward(ctypes.byref(arguments))
        return y

    def backward(self, call: ConvCall, dy: Tensor, dlast: Tensor | None, start: bool) -> Gradients:
        arguments = _arguments(call)
        dx = call.x.new_empty(call.x.shape)
        dweight, dbias = (floats(arguments.parts, *like.shape) for like in (call.weight, call.bias))
        dinitial = torch.empty_like(call.initial) if start and call.initial is not None else None
        arguments.dy, arguments.dx = Rows(dy), Rows(dx)
        for name, tensor in (("dlast", dlast), ("dweight", dweight), ("dbias", dbias), ("dinitial", dinitial)):
            setattr(arguments, name, address(tensor))
        cpp.library(SOURCE).ausm_conv_backward(ctypes.byref(arguments))
        return dx, dweight.sum(0), dbias.sum(0), dinitial


def _arguments(call: ConvCall) -> _Conv:
    sequences, frames, channels = call.x.shape
    return _Conv(
        N=sequences,
        T=frames,
        E=channels,
        K=len(call.weight),
        **share(call.x),
        bfloat16=call.x.dtype == torch.bfloat16,
        x=Rows(call.x),
        **{name: address(getattr(call, name)) for name in ("weight", "bias", "initial")},
    )
