# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The depthwise convolution in C++ (depthwise.cpp), for inference."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.cpp_kernel import CppKernel
from ausm_d2.kernels.depthwise.call import DepthwiseCall
from ausm_d2.kernels.packed import PackedWeights
from ausm_d2.kernels.structs import address, fields

SOURCE = Path(__file__).with_name("depthwise.cpp")


class _Depthwise(ctypes.Structure):
    """``Depthwise`` of depthwise.cpp."""

    _fields_ = [
        *fields("B H W P Q C K stride top left", ""),
        *fields("", "", (ctypes.c_float, "low high"), (ctypes.c_int32, "threads reserved")),
        *fields("", "", (ctypes.c_void_p, "x weight bias y")),
    ]


class CpuDepthwise(CppKernel[DepthwiseCall]):
    source = SOURCE

    def fits(self, call: DepthwiseCall) -> bool:
        return (
            call.x.dtype == call.weight.dtype == torch.float32
            and not call.learns()
            and min(call.output_size()) > 0
            and call.x.shape[1] % cpp.library(SOURCE).ausm_depthwise_lanes() == 0
        )

    def run(self, call: DepthwiseCall) -> tuple[Tensor]:
        x = call.x.contiguous(memory_format=torch.channels_last)
        weight, bias = call.weight.contiguous(), call.bias.contiguous()
        batch, channels, height, width = x.shape
        size = call.output_size()
        y = torch.empty((batch, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        arguments = _Depthwise(
            B=batch,
            H=height,
            W=width,
            P=size[0],
            Q=size[1],
            C=channels,
            K=len(weight),
            stride=call.stride,
            top=call.padding[2],
            left=call.padding[0],
            low=call.low,
            high=call.high,
            threads=torch.get_num_threads(),
            x=address(x),
            weight=address(weight),
            bias=address(bias),
            y=address(y),
        )
        cpp.library(SOURCE).ausm_depthwise(ctypes.byref(arguments))
        return (y,)


planes = PackedWeights(lambda weight: weight[:, 0].permute(1, 2, 0).contiguous())
"""(C, 1, k, k), as in PyTorch -> (k, k, C)."""
