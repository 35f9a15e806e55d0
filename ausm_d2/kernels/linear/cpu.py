# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Linear layers in C++ (linear.cpp), for inference.

With AVX2 and the few channels of light models they reach 85 to 95 % of the multiplications that a core can do; MKL and
oneDNN reach 65 to 85 %.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.cpp_kernel import CppKernel
from ausm_d2.kernels.linear.call import LinearCall
from ausm_d2.kernels.packed import PackedWeights
from ausm_d2.kernels.structs import address, fields

SOURCE = Path(__file__).with_name("linear.cpp")

MIN_ROWS = 512  # with fewer, as in ausm_nano, calling costs more than it saves
MAX_CHANNELS = 2048  # with more, a panel of weights does not stay in the cache


class _Linear(ctypes.Structure):
    """``Linear`` of linear.cpp."""

    _fields_ = [
        *fields("G M K N", ""),
        *fields("", "", (ctypes.c_float, "low high"), (ctypes.c_int32, "threads reserved")),
        *fields("", "", (ctypes.c_void_p, "x packed bias add y")),
    ]


class CpuLinear(CppKernel[LinearCall]):
    source = SOURCE

    def fits(self, call: LinearCall) -> bool:
        """Where it is faster than PyTorch."""
        outputs, inputs = call.weight.shape
        return (
            not call.learns()
            and call.x.dtype == call.weight.dtype == torch.float32
            and call.x.numel() >= MIN_ROWS * inputs
            and 0 < inputs <= MAX_CHANNELS
            and outputs > 0
            and not torch.is_autocast_enabled("cpu")
            and is_faster()
        )

    def run(self, call: LinearCall) -> tuple[Tensor]:
        outputs, inputs = call.weight.shape
        x = call.x.reshape(1, -1, inputs)
        y = multiply(x, packed_weights(call.weight), outputs, call.bias, low=call.low, high=call.high)
        return (y.view(*call.x.shape[:-1], outputs),)


def is_faster() -> bool:
    """Not with AVX-512, where MKL and oneDNN are closer to the limit (100 of 118 GFLOP/s), nor with short vectors."""
    return cpp.why_not(SOURCE) is None and cpp.library(SOURCE).ausm_linear_lanes() == 8


def multiply(
    x: Tensor,
    packed: Tensor,
    outputs: int,
    bias: Tensor | None = None,
    *,
    low: float = float("-inf"),
    high: float = float("inf"),
) -> Tensor:
    """Products with packed weights.

    Args:
        x: (G, M, K).
        packed: from :func:`pack`.
        outputs: N.
        bias: (N,).

    Returns:
        (G, M, N).
    """
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    products, rows, inputs = x.shape
    y = x.new_empty(products, rows, outputs)
    arguments = _Linear(
        G=products,
        M=rows,
        K=inputs,
        N=outputs,
        low=low,
        high=high,
        threads=torch.get_num_threads(),
        x=address(x),
        packed=address(packed),
        bias=address(bias),
        y=address(y),
    )
    cpp.library(SOURCE).ausm_linear(ctypes.byref(arguments))
    return y


def pack(weight: Tensor) -> Tensor:
    """(G, N, K) or (N, K) -> the layout of linear.cpp, flat."""
    library = cpp.library(SOURCE)
    library.ausm_linear_packed.restype = ctypes.c_int64
    *_, outputs, inputs = weight.shape
    products = weight.numel() // max(outputs * inputs, 1)
    sizes = ctypes.c_int64(inputs), ctypes.c_int64(outputs)
    packed = weight.new_empty(products * library.ausm_linear_packed(*sizes))
    weight = weight.contiguous()
    places = (ctypes.c_void_p(each.data_ptr()) for each in (weight, packed))
    library.ausm_linear_pack(ctypes.c_int64(products), *sizes, *places)
    return packed


packed_weights = PackedWeights(pack)
