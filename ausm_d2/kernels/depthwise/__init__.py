# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution with bias and clamp. oneDNN's is slow (3 to 15 GFLOP/s on a core) and pads one side by a copy.

Shape shorthand:
    BT: frames
    C: channels; k: side of the kernel
    h, w and h', w': feature size before and after
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.choice import Operation
from ausm_d2.kernels.depthwise.call import DepthwiseCall
from ausm_d2.kernels.depthwise.cpu import CpuDepthwise


def _reference(call: DepthwiseCall) -> tuple[Tensor]:
    weight = call.weight.permute(2, 0, 1)[:, None]
    y = F.conv2d(F.pad(call.x, call.padding), weight, call.bias, call.stride, groups=call.x.shape[1])
    return (y.clamp(call.low, call.high),)


DEPTHWISE: Operation[DepthwiseCall] = Operation("depthwise convolution", _reference, [CpuDepthwise()])


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    padding: tuple[int, int, int, int],
    low: float = float("-inf"),
    high: float = float("inf"),
    kernels: str = "auto",
) -> Tensor:
    """One kernel per channel, then bias, then clamp to [``low``, ``high``].

    Args:
        x: (BT, C, h, w), best channels last.
        weight: (k, k, C).
        bias: (C,).
        padding: zeros at the left, right, top and bottom.
        kernels: one of ``choice.NAMES``.

    Returns:
        (BT, C, h', w').
    """
    (y,) = DEPTHWISE(DepthwiseCall(x, weight, bias, stride, padding, low, high), kernels)
    return y
