# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention in C++ (deformable.cpp), for inference."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.cpp_kernel import CppKernel
from ausm_d2.kernels.deformable.call import DeformableCall

SOURCE = Path(__file__).with_name("deformable.cpp")


class CpuDeformable(CppKernel[DeformableCall]):
    source = SOURCE

    def fits(self, call: DeformableCall) -> bool:
        return call.logits.dtype != torch.float64 and not torch.is_grad_enabled()

    def run(self, call: DeformableCall) -> tuple[Tensor]:
        values, offsets, logits = (each.float().contiguous() for each in call[:3])
        out = torch.empty_like(values)
        level_sizes = (ctypes.c_int64 * (2 * len(call.sizes)))(*(side for size in call.sizes for side in size))
        batch, pixels, heads, channels = values.shape
        addresses = (ctypes.c_void_p(each.data_ptr()) for each in (values, offsets, logits))
        counts = (ctypes.c_int64(each) for each in (batch, pixels, heads, *logits.shape[3:], channels))
        cpp.library(SOURCE).ausm_deformable_attention(
            *addresses, level_sizes, ctypes.c_void_p(out.data_ptr()), *counts, ctypes.c_int32(torch.get_num_threads())
        )
        return (out,)
