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


def _reference(call: LinearCall) -> tuple[Tensor]:
    y = F.linear(call.x, call.weight, call.bias)
    if (call.low, call.high) == (0.0, math.inf):
        return (F.relu(y, inplace=True),)
    return (y if (call.low, call.high) == (-math.inf, math.inf) else y.clamp(call.low, call.high),)


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
    call = LinearCall(x, weight, bias, low, high)
    few = x.numel() < MIN_ROWS * x.shape[-1]  # for which no kernel fits: choosing one takes time too
    (y,) = _reference(call) if few else LINEAR(call, kernels)
    return y
