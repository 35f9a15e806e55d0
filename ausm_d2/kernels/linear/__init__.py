# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Linear layers, 1 x 1 convolutions included, with bias and clamp.

Shape shorthand:
    K, N: channels before and after
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.choice import Operation
from ausm_d2.kernels.linear.call import LinearCall
from ausm_d2.kernels.linear.cpu import MIN_ROWS, CpuLinear


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, low: float, high: float) -> Tensor:
    y = F.linear(x, weight, bias)
    if high == math.inf:
        return y if low == -math.inf else F.relu(y, inplace=True) if low == 0.0 else y.clamp(min=low)
    return y.clamp(low, high)


def _reference(call: LinearCall) -> tuple[Tensor]:
    return (_plain(call.x, call.weight, call.bias, call.low, call.high),)


LINEAR: Operation[LinearCall] = Operation("linear layer", _reference, [CpuLinear()])


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    kernels: str = "auto",
) -> Tensor:
    """``x weight^T + bias``, clamped to [``low``, ``high``].

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,).
        kernels: one of ``choice.NAMES``.

    Returns:
        (..., N).
    """
    if x.numel() < MIN_ROWS * x.shape[-1]:  # no kernel fits so few rows, and choosing one takes time
        return _plain(x, weight, bias, low, high)
    return LINEAR(LinearCall(x, weight, bias, low, high), kernels)[0]
