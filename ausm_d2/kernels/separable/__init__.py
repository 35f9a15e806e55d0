# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Separable blocks without gradients: depthwise convolution, group norm, ReLU, 1 x 1 convolution, group norm, sum with
the input and ReLU, as one operation.

Shape shorthand:
    BT: frames
    C: channels; k: side of the depthwise kernel
    h, w: feature size
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.choice import Operation
from ausm_d2.kernels.separable.call import SeparableCall
from ausm_d2.kernels.separable.cpu import CpuSeparable


def _reference(call: SeparableCall) -> tuple[Tensor]:
    y = F.conv2d(call.x, call.depthwise, call.depthwise_bias, padding="same", groups=len(call.depthwise)).contiguous()
    y = F.relu(F.group_norm(y, call.groups1, call.weight1, call.bias1, call.eps1))
    y = F.conv2d(y, call.pointwise[:, :, None, None], call.pointwise_bias)
    return (F.relu(call.x + F.group_norm(y, call.groups2, call.weight2, call.bias2, call.eps2)),)


SEPARABLE: Operation[SeparableCall] = Operation("separable block", _reference, [CpuSeparable()])
"""(BT, C, h, w) -> (BT, C, h, w)."""
