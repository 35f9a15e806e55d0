# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Convolutions of the feature pyramids, 1 x 1, 3 x 3 and depthwise, and the group norms after them.

Shape shorthand:
    BT: frames
    C, C': channels before and after a convolution
    h, w: feature size
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm_d2.kernels.depthwise import depthwise_conv
from ausm_d2.kernels.group_norm import group_norm
from ausm_d2.kernels.linear import linear
from ausm_d2.kernels.separable import SEPARABLE
from ausm_d2.kernels.separable.call import SeparableCall
from ausm_d2.kernels.winograd import conv3x3


def conv_norm(
    x: Tensor, conv: nn.Conv2d, norm: Any, *, add: Tensor | None = None, relu: bool = False, kernels: str = "auto"
) -> Tensor:
    """Convolution, group norm and, where asked for, sum and ReLU: (BT, C, h, w) -> (BT, C', h, w).

    Args:
        conv: 1 x 1, or 3 x 3 with padding 1 and without bias.
        norm: a ``GroupNorm``.
        add: (BT, C', h, w), added to the norm.
        kernels: one of ``kernels.choice.NAMES``.
    """
    if not _in_rows(x):
        x = x.contiguous()  # PyTorch's group norm computes the variance less accurately on channels-last input
    y = conv3x3(x, conv.weight, kernels=kernels) if conv.kernel_size == (3, 3) else convolve(x, conv, kernels=kernels)
    if _in_rows(y):
        return group_norm(y, norm.num_groups, norm.weight, norm.bias, norm.eps, add=add, relu=relu, kernels=kernels)
    y = norm(y.contiguous())
    y = y if add is None else y + add
    return F.relu(y) if relu else y


def separable_block(
    x: Tensor, depthwise: nn.Conv2d, norm1: Any, pointwise: nn.Conv2d, norm2: Any, *, kernels: str = "auto"
) -> Tensor:
    """Depthwise convolution, group norm, ReLU, 1 x 1 convolution, group norm, sum with ``x`` and ReLU.

    Args:
        x: (BT, C, h, w).
        depthwise: C groups, stride 1, odd kernel, zero-padded to the same size, with bias.
        norm1, norm2: ``GroupNorm``.
        pointwise: with bias.
        kernels: one of ``kernels.choice.NAMES``.

    Returns:
        (BT, C, h, w).
    """
    if _in_rows(x) and depthwise.bias is not None and pointwise.bias is not None:
        call = SeparableCall(
            x,
            depthwise.weight,
            depthwise.bias,
            norm1.weight,
            norm1.bias,
            pointwise.weight[:, :, 0, 0],
            pointwise.bias,
            norm2.weight,
            norm2.bias,
            norm1.num_groups,
            norm2.num_groups,
            norm1.eps,
            norm2.eps,
        )
        block = SEPARABLE.choose(call, kernels)
        if block is not SEPARABLE.reference:
            return block(call)[0]
        weight = depthwise.weight[:, 0].permute(1, 2, 0).contiguous()  # no cache, which torch.export could not trace
        side = depthwise.kernel_size[0] // 2
        y = depthwise_conv(x, weight, depthwise.bias, stride=1, padding=(side, side, side, side), kernels=kernels)
        y = group_norm(y, norm1.num_groups, norm1.weight, norm1.bias, norm1.eps, relu=True, kernels=kernels)
    else:
        y = F.relu(norm1(depthwise(x)))
    return conv_norm(y, pointwise, norm2, add=x, relu=True, kernels=kernels)


def convolve(x: Tensor, conv: nn.Conv2d, *, kernels: str = "auto") -> Tensor:
    """A 1 x 1 convolution: (BT, C, h, w) -> (BT, C', h, w)."""
    if not _in_rows(x):
        return F.conv2d(x, conv.weight, conv.bias)
    # One matrix product, without a copy before or after it.
    x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return linear(x, conv.weight[:, :, 0, 0], conv.bias, kernels=kernels).permute(0, 3, 1, 2)


def _in_rows(x: Tensor) -> bool:
    """Whether features stay channels last: in inference on a CPU in float32, since our kernels need that layout."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
