# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Group norm in C++ (group_norm.cpp), for inference on channels-last features."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.cpp_kernel import CppKernel
from ausm_d2.kernels.group_norm.call import GroupNormCall
from ausm_d2.kernels.structs import address, fields, floats

SOURCE = Path(__file__).with_name("group_norm.cpp")


class _GroupNorm(ctypes.Structure):
    """``GroupNorm`` of group_norm.cpp."""

    _fields_ = [
        *fields("B P C G", "", (ctypes.c_float, "eps"), (ctypes.c_int32, "relu threads reserved")),
        *fields("", "", (ctypes.c_void_p, "x weight bias add y scale")),
    ]


class CpuGroupNorm(CppKernel[GroupNormCall]):
    source = SOURCE

    def fits(self, call: GroupNormCall) -> bool:
        return (
            call.x.dtype == call.weight.dtype == torch.float32
            and not call.learns()
            and call.x.numel() > 0
            and (call.add is None or (call.add.dtype == torch.float32 and call.add.shape == call.x.shape))
            and call.x.is_contiguous(memory_format=torch.channels_last)
            and call.x.shape[1] % cpp.library(SOURCE).ausm_group_norm_lanes() == 0
        )

    def run(self, call: GroupNormCall) -> tuple[Tensor]:
        x = call.x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        y, scale = torch.empty_like(x), floats(batch, 2, channels)
        weight, bias = call.weight.contiguous(), call.bias.contiguous()
        add = None if call.add is None else call.add.contiguous(memory_format=torch.channels_last)
        arguments = _GroupNorm(
            B=batch,
            P=height * width,
            C=channels,
            G=call.groups,
            eps=call.eps,
            relu=call.relu,
            threads=torch.get_num_threads(),
            x=address(x),
            weight=address(weight),
            bias=address(bias),
            add=address(add),
            y=address(y),
            scale=address(scale),
        )
        if not cpp.library(SOURCE).ausm_group_norm(ctypes.byref(arguments)):
            raise MemoryError(f"group norm of {batch} x {channels} channels")
        return (y,)
