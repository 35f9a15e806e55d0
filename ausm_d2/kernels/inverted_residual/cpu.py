# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The inverted residual block in C++ (inverted_residual.cpp), for inference."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.cpp_kernel import CppKernel
from ausm_d2.kernels.inverted_residual.call import BlockCall
from ausm_d2.kernels.linear.cpu import is_faster, packed_weights
from ausm_d2.kernels.structs import address, fields

SOURCE = Path(__file__).with_name("inverted_residual.cpp")


class _Block(ctypes.Structure):
    """``Block`` of inverted_residual.cpp."""

    _fields_ = [
        *fields("B H W P Q C E N K stride top left", ""),
        *fields("", "", (ctypes.c_float, "low high"), (ctypes.c_int32, "threads sums")),
        *fields("", "", (ctypes.c_void_p, "x expand expand_bias depthwise depthwise_bias project project_bias y")),
    ]


class CpuBlock(CppKernel[BlockCall]):
    source = SOURCE

    def fits(self, call: BlockCall) -> bool:
        return (
            all(each.dtype == torch.float32 for each in call[:7])
            and not call.learns()
            and not torch.is_autocast_enabled("cpu")
            and call.x.numel() > 0
            and min(call.output_size()) > 0
            and len(call.expand) % cpp.library(SOURCE).ausm_inverted_residual_lanes() == 0
            and is_faster()
        )

    def run(self, call: BlockCall) -> tuple[Tensor]:
        x = call.x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        size, outputs = call.output_size(), len(call.project)
        y = torch.empty((batch, outputs, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        # Held here while the kernel reads them.
        weights = {
            "expand": packed_weights(call.expand),
            "expand_bias": call.expand_bias.contiguous(),
            "depthwise": call.depthwise.contiguous(),
            "depthwise_bias": call.depthwise_bias.contiguous(),
            "project": packed_weights(call.project),
            "project_bias": call.project_bias.contiguous(),
        }
        arguments = _Block(
            B=batch,
            H=height,
            W=width,
            P=size[0],
            Q=size[1],
            C=channels,
            E=len(call.expand),
            N=outputs,
            K=len(call.depthwise),
            stride=call.stride,
            top=call.padding[2],
            left=call.padding[0],
            low=call.low,
            high=call.high,
            threads=torch.get_num_threads(),
            sums=call.sums,
            x=address(x),
            y=address(y),
            **{name: address(each) for name, each in weights.items()},
        )
        cpp.library(SOURCE).ausm_inverted_residual(ctypes.byref(arguments))
        return (y,)
