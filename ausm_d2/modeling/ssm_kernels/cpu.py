# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The fused CPU backend: cpu.cpp, called with addresses and strides.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size; K: width of the convolution.

float32 and bfloat16 activations go to the kernels as they are (others as float32); A, D, biases and states are float32.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ausm_d2.modeling.ssm_kernels.build import load_library


class _Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("sequence", ctypes.c_int64), ("frame", ctypes.c_int64)]


def _struct(name: str, sizes: str, flags: str, rows: str, pointers: str, more_rows: str, more_pointers: str) -> Any:
    fields: list[tuple[str, Any]] = [(field, ctypes.c_int64) for field in sizes.split()]
    fields += [(field, ctypes.c_int32) for field in flags.split()]
    for names, kind in (
        (rows, _Rows),
        (pointers, ctypes.c_void_p),
        (more_rows, _Rows),
        (more_pointers, ctypes.c_void_p),
    ):
        fields += [(field, kind) for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


# The structs of the same names in cpu.cpp.
_Scan = _struct(
    "_Scan",
    "N T E S",
    "threads parts bfloat16 delta_softplus",
    "u delta z B C y",
    "A D delta_bias initial last",
    "dy du ddelta dz dB dC",
    "dlast dA dD dbias dinitial",
)
_Conv = _struct(
    "_Conv",
    "N T E K",
    "threads parts bfloat16 reserved",
    "x y",
    "weight bias initial last",
    "dy dx",
    "dlast dweight dbias dinitial",
)


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        CompileError: they cannot be compiled here.
    """
    kernels = load_library(Path(__file__).with_name("cpu.cpp"))
    for name in ("ausm_scan_forward", "ausm_scan_backward", "ausm_conv_forward", "ausm_conv_backward"):
        getattr(kernels, name).restype = None
    return kernels


def _rows(tensor: Tensor | None) -> _Rows:
    return _Rows() if tensor is None else _Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _unit(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Its rows without gaps, in ``dtype``; sequences and frames may lie at any distance."""
    if tensor is None:
        return None
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _plain(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _activation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.bfloat16 if tensor.dtype == torch.bfloat16 else torch.float32


def _share(sequences: int) -> dict[str, int]:
    """More parts than threads: one that has to wait for its core leaves parts to the others."""
    threads = max(1, min(torch.get_num_threads(), sequences))
    return {"threads": threads, "parts": 1 if threads == 1 else max(1, min(4 * threads, sequences))}


def _scan_arguments(
    u: Tensor,
    delta: Tensor,
    exponent: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial: Tensor | None,
) -> Any:
    sequences, frames, channels = u.shape
    return _Scan(
        N=sequences,
        T=frames,
        E=channels,
        S=B.shape[-1],
        **_share(sequences),
        bfloat16=u.dtype == torch.bfloat16,
        delta_softplus=delta_softplus,
        u=_rows(u),
        delta=_rows(delta),
        z=_rows(z),
        B=_rows(B),
        C=_rows(C),
        A=_pointer(exponent),
        D=_pointer(D),
        delta_bias=_pointer(delta_bias),
        initial=_pointer(initial),
    )


def supports(x: Tensor) -> bool:
    """Whether there are kernels for activations like ``x``.

    Raises:
        CompileError: there would be, but they cannot be compiled here.
    """
    if x.device.type != "cpu" or x.dtype == torch.float64:
        return False
    _library()
    return True


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        initial: Tensor | None,
        inplace: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        exponent = (A.T * math.log2(math.e)).contiguous()
        ctx.save_for_backward(u, delta, exponent, B, C, D, z, delta_bias, initial)
        ctx.delta_softplus = delta_softplus
        y = torch.empty(u.shape, dtype=u.dtype)
        last = initial if inplace and initial is not None else torch.empty(len(u), *A.shape)
        arguments = _scan_arguments(u, delta, exponent, B, C, D, z, delta_bias, delta_softplus, initial)
        arguments.y, arguments.last = _rows(y), _pointer(last)
        _library().ausm_scan_forward(ctypes.byref(arguments))
        return y, last

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        u, delta, exponent, B, C, D, z, delta_bias, initial = ctx.saved_tensors
        arguments = _scan_arguments(u, delta, exponent, B, C, D, z, delta_bias, ctx.delta_softplus, initial)
        dy = torch.zeros_like(u) if dy is None else _unit(dy, u.dtype)
        dlast = _plain(dlast, torch.float32)
        du, ddelta, dz = (None if x is None else torch.empty(x.shape, dtype=x.dtype) for x in (u, delta, z))
        dB, dC = torch.empty(B.shape, dtype=B.dtype), torch.empty(C.shape, dtype=C.dtype)
        parts, channels = arguments.parts, u.shape[-1]
        dA = torch.empty(parts, *exponent.shape)
        dD, dbias = torch.empty(parts, channels), torch.empty(parts, channels)
        dinitial = torch.empty_like(initial) if ctx.needs_input_grad[9] else None
        for name, rows in (("dy", dy), ("du", du), ("ddelta", ddelta), ("dz", dz), ("dB", dB), ("dC", dC)):
            setattr(arguments, name, _rows(rows))
        for name, tensor in (("dlast", dlast), ("dA", dA), ("dD", dD), ("dbias", dbias), ("dinitial", dinitial)):
            setattr(arguments, name, _pointer(tensor))
        _library().ausm_scan_backward(ctypes.byref(arguments))
        return (
            du,
            ddelta,
            dA.sum(0).T,
            dB,
            dC,
            None if D is None else dD.sum(0),
            dz,
            None if delta_bias is None else dbias.sum(0),
            None,
            dinitial,
            None,
        )


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`ausm_d2.modeling.ssm_kernels.selective_scan`."""
    dtype = _activation_dtype(u)
    initial = _plain(initial_state, torch.float32)
    y, last = _SelectiveScan.apply(
        _unit(u, dtype),
        _unit(delta, dtype),
        A.float(),
        _unit(B, dtype),
        _unit(C, dtype),
        _plain(D, torch.float32),
        _unit(z, dtype),
        _plain(delta_bias, torch.float32),
        delta_softplus,
        initial,
        inplace,
    )
    return y.to(u.dtype), _kept(last, initial, initial_state, inplace)


def _kept(last: Tensor, worked_on: Tensor | None, given: Tensor | None, inplace: bool) -> Tensor:
    """In place, the caller's own tensor, which may not be the one the kernel could work on."""
    if not inplace or given is None:
        return last
    return given if worked_on is given else given.copy_(last)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor | None, inplace: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        weight = weight.T.contiguous()
        ctx.save_for_backward(x, weight, bias, initial)
        y = torch.empty(x.shape, dtype=x.dtype)
        shape = (len(x), x.shape[2], len(weight))
        last = initial if inplace and initial is not None else torch.empty(shape, dtype=x.dtype)
        arguments = _conv_arguments(x, weight, bias, initial)
        arguments.y, arguments.last = _rows(y), _pointer(last)
        _library().ausm_conv_forward(ctypes.byref(arguments))
        return y, last

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, initial = ctx.saved_tensors
        arguments = _conv_arguments(x, weight, bias, initial)
        dy = torch.zeros_like(x) if dy is None else _unit(dy, x.dtype)
        dlast = _plain(dlast, x.dtype)
        dx = torch.empty(x.shape, dtype=x.dtype)
        dweight, dbias = (torch.empty(arguments.parts, *like.shape) for like in (weight, bias))
        dinitial = torch.empty_like(initial) if ctx.needs_input_grad[3] else None
        arguments.dy, arguments.dx = _rows(dy), _rows(dx)
        for name, tensor in (("dlast", dlast), ("dweight", dweight), ("dbias", dbias), ("dinitial", dinitial)):
            setattr(arguments, name, _pointer(tensor))
        _library().ausm_conv_backward(ctypes.byref(arguments))
        return dx, dweight.sum(0).T, dbias.sum(0), dinitial, None


def _conv_arguments(x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor | None) -> Any:
    sequences, frames, channels = x.shape
    return _Conv(
        N=sequences,
        T=frames,
        E=channels,
        K=len(weight),
        **_share(sequences),
        bfloat16=x.dtype == torch.bfloat16,
        x=_rows(x),
        weight=_pointer(weight),
        bias=_pointer(bias),
        initial=_pointer(initial),
    )


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor | None, inplace: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`ausm_d2.modeling.ssm_kernels.causal_conv`."""
    dtype = _activation_dtype(x)
    worked_on = _plain(initial, dtype)
    y, last = _CausalConv.apply(_unit(x, dtype), weight.float(), _plain(bias, torch.float32), worked_on, inplace)
    return y.to(x.dtype), _kept(last.to(x.dtype), worked_on, initial, inplace)
