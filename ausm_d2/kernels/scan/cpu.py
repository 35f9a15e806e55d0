# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The fused CPU backend: scan.cpp, called with addresses and strides.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size; K: width of the convolution.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ausm_d2.kernels.cpp import load_library
from ausm_d2.kernels.scan.autograd import ConvInputs, FusedBackend, ScanGradients, ScanInputs


class _Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("sequence", ctypes.c_int64), ("frame", ctypes.c_int64)]

    def __init__(self, tensor: Tensor | None = None) -> None:
        if tensor is not None:
            super().__init__(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _fields(sizes: str, flags: str, *others: tuple[Any, str]) -> list[tuple[str, Any]]:
    groups = ((ctypes.c_int64, sizes), (ctypes.c_int32, flags), *others)
    return [(name, kind) for kind, names in groups for name in names.split()]


class _Scan(ctypes.Structure):
    """``Scan`` of scan.cpp."""

    _fields_ = _fields(
        "N T E S",
        "threads parts bfloat16 delta_softplus",
        (_Rows, "u delta z B C y"),
        (ctypes.c_void_p, "A D delta_bias initial last"),
        (_Rows, "dy du ddelta dz dB dC"),
        (ctypes.c_void_p, "dlast dA dD dbias dinitial"),
    )


class _Conv(ctypes.Structure):
    """``Conv`` of scan.cpp."""

    _fields_ = _fields(
        "N T E K",
        "threads parts bfloat16 reserved",
        (_Rows, "x y"),
        (ctypes.c_void_p, "weight bias initial last"),
        (_Rows, "dy dx"),
        (ctypes.c_void_p, "dlast dweight dbias dinitial"),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        CompileError: they cannot be compiled here.
    """
    return load_library(Path(__file__).with_name("scan.cpp"))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _share(x: Tensor) -> dict[str, int]:
    """More parts than threads, so that one that has to wait for its core leaves parts to the others; a thread is worth
    its start from some ten thousand numbers on."""
    threads = max(1, min(torch.get_num_threads(), len(x), x.numel() // 16384))
    return {"threads": threads, "parts": 1 if threads == 1 else min(4 * threads, len(x))}


class CpuBackend(FusedBackend):
    activation_dtypes = (torch.float32, torch.bfloat16)

    def supports(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and x.dtype != torch.float64 and library() is not None

    def scan_forward(self, inputs: ScanInputs, last: Tensor) -> Tensor:
        y = torch.empty(inputs.u.shape, dtype=inputs.u.dtype)
        exponent = _exponent(inputs)
        arguments = _scan_arguments(inputs, exponent)
        arguments.y, arguments.last = _Rows(y), _address(last)
        library().ausm_scan_forward(ctypes.byref(arguments))
        return y

    def scan_backward(self, inputs: ScanInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ScanGradients:
        exponent = _exponent(inputs)
        arguments = _scan_arguments(inputs, exponent)
        parts, channels = arguments.parts, inputs.u.shape[-1]
        du, ddelta, dB, dC = (torch.empty(x.shape, dtype=x.dtype) for x in (inputs.u, inputs.delta, inputs.B, inputs.C))
        dz = None if inputs.z is None else torch.empty_like(du)
        dA = torch.empty(parts, *exponent.shape)
        dD, dbias = torch.empty(parts, channels), torch.empty(parts, channels)
        dinitial = torch.empty(inputs.initial.shape) if start and inputs.initial is not None else None
        for name, rows in (("dy", dy), ("du", du), ("ddelta", ddelta), ("dz", dz), ("dB", dB), ("dC", dC)):
            setattr(arguments, name, _Rows(rows))
        for name, tensor in (("dlast", dlast), ("dA", dA), ("dD", dD), ("dbias", dbias), ("dinitial", dinitial)):
            setattr(arguments, name, _address(tensor))
        library().ausm_scan_backward(ctypes.byref(arguments))
        return ScanGradients(du, ddelta, dA.sum(0).T, dB, dC, dD.sum(0), dz, dbias.sum(0), dinitial)

    def conv_forward(self, inputs: ConvInputs, last: Tensor) -> Tensor:
        y = torch.empty(inputs.x.shape, dtype=inputs.x.dtype)
        arguments = _conv_arguments(inputs)
        arguments.y, arguments.last = _Rows(y), _address(last)
        library().ausm_conv_forward(ctypes.byref(arguments))
        return y

    def conv_backward(self, inputs: ConvInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ConvInputs:
        arguments = _conv_arguments(inputs)
        dx = torch.empty(inputs.x.shape, dtype=inputs.x.dtype)
        dweight, dbias = (torch.empty(arguments.parts, *like.shape) for like in (inputs.weight, inputs.bias))
        dinitial = torch.empty_like(inputs.initial) if start and inputs.initial is not None else None
        arguments.dy, arguments.dx = _Rows(dy), _Rows(dx)
        for name, tensor in (("dlast", dlast), ("dweight", dweight), ("dbias", dbias), ("dinitial", dinitial)):
            setattr(arguments, name, _address(tensor))
        library().ausm_conv_backward(ctypes.byref(arguments))
        return ConvInputs(dx, dweight.sum(0), dbias.sum(0), dinitial)


def _exponent(inputs: ScanInputs) -> Tensor:
    """(S, E): A for powers of two, with whole vectors of channels."""
    return (inputs.A.T * math.log2(math.e)).contiguous()


def _scan_arguments(inputs: ScanInputs, exponent: Tensor) -> _Scan:
    sequences, frames, channels = inputs.u.shape
    return _Scan(
        N=sequences,
        T=frames,
        E=channels,
        S=len(exponent),
        **_share(inputs.u),
        bfloat16=inputs.u.dtype == torch.bfloat16,
        delta_softplus=inputs.delta_softplus,
        A=_address(exponent),
        **{name: _Rows(getattr(inputs, name)) for name in ("u", "delta", "z", "B", "C")},
        **{name: _address(getattr(inputs, name)) for name in ("D", "delta_bias", "initial")},
    )


def _conv_arguments(inputs: ConvInputs) -> _Conv:
    sequences, frames, channels = inputs.x.shape
    return _Conv(
        N=sequences,
        T=frames,
        E=channels,
        K=len(inputs.weight),
        **_share(inputs.x),
        bfloat16=inputs.x.dtype == torch.bfloat16,
        x=_Rows(inputs.x),
        **{name: _address(getattr(inputs, name)) for name in ("weight", "bias", "initial")},
    )
