# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Inverted residual blocks (MobileNetV2, arXiv 1801.04381) without gradients: 1 x 1 expansion, depthwise convolution,
1 x 1 projection, sum, as one operation.

Shape shorthand:
    BT: frames; k: side of the depthwise kernel
    C, E, N: channels of the input, expanded, of the output
    H, W and P, Q: input and output size
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.choice import Operation
from ausm_d2.kernels.inverted_residual.call import BlockCall
from ausm_d2.kernels.inverted_residual.cpu import CpuBlock


def _reference(call: BlockCall) -> tuple[Tensor]:
    x = F.conv2d(call.x, call.expand[:, :, None, None], call.expand_bias).clamp(call.low, call.high)
    weight = call.depthwise.permute(2, 0, 1)[:, None]
    x = F.conv2d(F.pad(x, call.padding), weight, call.depthwise_bias, call.stride, groups=len(weight))
    y = F.conv2d(x.clamp(call.low, call.high), call.project[:, :, None, None], call.project_bias)
    return (y + call.x if call.sums else y,)


BLOCK: Operation[BlockCall] = Operation("inverted residual block", _reference, [CpuBlock()])
"""(BT, C, H, W) -> (BT, N, P, Q)."""
