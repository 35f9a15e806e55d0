# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What our own convolution kernels (C++, Triton) share.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; K: width of the convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ausm_d2.kernels.conv.call import ConvCall
from ausm_d2.kernels.fused import FusedKernel
from ausm_d2.kernels.layout import plain, rows


class FusedConv(FusedKernel[ConvCall]):
    """Prepared calls have the weight transposed to (K, E), x and initial in one dtype, weight and bias float32. x has
    stride 1 over channels, the others are contiguous. The output is (N, T, E), the state the last K inputs (N, E, K).
    """

    tensors = 4

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    def prepared(self, call: ConvCall, dtype: torch.dtype) -> ConvCall:
        weight, bias = plain(call.weight.T, torch.float32), plain(call.bias, torch.float32)
        return ConvCall(rows(call.x, dtype), weight, bias, plain(call.initial, dtype), call.inplace)

    def new_state(self, call: ConvCall) -> Tensor:
        return call.x.new_empty(len(call.x), call.x.shape[2], len(call.weight))
