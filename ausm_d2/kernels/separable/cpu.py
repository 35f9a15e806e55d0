# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The separable block in C++ (separable.cpp), for inference."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.cpp_kernel import CppKernel
from ausm_d2.kernels.depthwise.cpu import planes
from ausm_d2.kernels.linear.cpu import is_faster, packed_weights
from ausm_d2.kernels.separable.call import SeparableCall
from ausm_d2.kernels.structs import address, fields, floats

SOURCE = Path(__file__).with_name("separable.cpp")


class _Separable(ctypes.Structure):
    """``Separable`` of separable.cpp."""

    _fields_ = [
        *fields("B H W C G1 G2 K", "", (ctypes.c_float, "eps1 eps2"), (ctypes.c_int32, "threads reserved")),
        *fields("", "", (ctypes.c_void_p, "x depthwise depthwise_bias weight1 bias1")),
        *fields("", "", (ctypes.c_void_p, "pointwise pointwise_bias weight2 bias2 y between scale")),
    ]


class CpuSeparable(CppKernel[SeparableCall]):
    source = SOURCE

    def fits(self, call: SeparableCall) -> bool:
        return (
            all(each.dtype == torch.float32 for each in call[:9])
            and not call.learns()
            and not torch.is_autocast_enabled("cpu")
            and call.x.numel() > 0
            and call.x.shape[1] % cpp.library(SOURCE).ausm_separable_lanes() == 0
            and is_faster()
        )

    def run(self, call: SeparableCall) -> tuple[Tensor]:
        x = call.x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        # Held here while the kernel reads them.
        tensors = {
            "x": x,
            "y": torch.empty_like(x, memory_format=torch.channels_last),
            "between": floats(*x.shape),
            "scale": floats(2, batch, 2, channels),
            "depthwise": planes(call.depthwise),
            "pointwise": packed_weights(call.pointwise),
        }
        names = ("depthwise_bias", "weight1", "bias1", "pointwise_bias", "weight2", "bias2")
        tensors |= {name: getattr(call, name).contiguous() for name in names}
        arguments = _Separable(
            B=batch,
            H=height,
            W=width,
            C=channels,
            G1=call.groups1,
            G2=call.groups2,
            K=call.depthwise.shape[-1],
            eps1=call.eps1,
            eps2=call.eps2,
            threads=torch.get_num_threads(),
            **{name: address(each) for name, each in tensors.items()},
        )
        if not cpp.library(SOURCE).ausm_separable(ctypes.byref(arguments)):
            raise MemoryError(f"separable block of {batch} x {channels} channels")
        return (tensors["y"],)
