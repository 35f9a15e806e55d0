# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The scan in C++: scan.cpp, called with addresses and strides.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.fused import Gradients
from ausm_d2.kernels.scan.call import ScanCall
from ausm_d2.kernels.scan.fused import FusedScan
from ausm_d2.kernels.structs import Rows, address, fields, floats, share

SOURCE = Path(__file__).with_name("scan.cpp")


class _Scan(ctypes.Structure):
    """``Scan`` of scan.cpp."""

    _fields_ = fields(
        "N T E S",
        "threads parts bfloat16 delta_softplus",
        (Rows, "u delta z B C y"),
        (ctypes.c_void_p, "A D delta_bias initial last"),
        (Rows, "dy du ddelta dz dB dC"),
        (ctypes.c_void_p, "dlast dA dD dbias dinitial"),
    )


class CpuScan(FusedScan):
    name = "cpu"
    devices = ("cpu",)
    dtypes = (torch.float32, torch.bfloat16)

    def unavailable(self) -> str | None:
        return cpp.why_not(SOURCE)

    def forward(self, call: ScanCall, last: Tensor) -> Tensor:
        y = call.u.new_empty(call.u.shape)
        exponent = _exponent(call)
        arguments = _arguments(call, exponent)
        arguments.y, arguments.last = Rows(y), address(last)
        cpp.library(SOURCE).ausm_scan_forward(ctypes.byref(arguments))
        return y

    def backward(self, call: ScanCall, dy: Tensor, dlast: Tensor | None, start: bool) -> Gradients:
        exponent = _exponent(call)
        arguments = _arguments(call, exponent)
        parts, channels = arguments.parts, call.u.shape[-1]
        du, ddelta, dB, dC = (x.new_empty(x.shape) for x in (call.u, call.delta, call.B, call.C))
        dz = None if call.z is None else torch.empty_like(du)
        dA, dD, dbias = floats(parts, *exponent.shape), floats(parts, channels), floats(parts, channels)
        dinitial = floats(*call.initial.shape) if start and call.initial is not None else None
        for name, each in (("dy", dy), ("du", du), ("ddelta", ddelta), ("dz", dz), ("dB", dB), ("dC", dC)):
            setattr(arguments, name, Rows(each))
        for name, tensor in (("dlast", dlast), ("dA", dA), ("dD", dD), ("dbias", dbias), ("dinitial", dinitial)):
            setattr(arguments, name, address(tensor))
        cpp.library(SOURCE).ausm_scan_backward(ctypes.byref(arguments))
        return du, ddelta, dA.sum(0).T, dB, dC, dD.sum(0), dz, dbias.sum(0), dinitial


def _exponent(call: ScanCall) -> Tensor:
    """(S, E): A * log2(e), for exp2, transposed to contiguous channels."""
    return (call.A.T * math.log2(math.e)).contiguous()


def _arguments(call: ScanCall, exponent: Tensor) -> _Scan:
    sequences, frames, channels = call.u.shape
    return _Scan(
        N=sequences,
        T=frames,
        E=channels,
        S=len(exponent),
        **share(call.u),
        bfloat16=call.u.dtype == torch.bfloat16,
        delta_softplus=call.delta_softplus,
        A=address(exponent),
        **{name: Rows(getattr(call, name)) for name in ("u", "delta", "z", "B", "C")},
        **{name: address(getattr(call, name)) for name in ("D", "delta_bias", "initial")},
    )
