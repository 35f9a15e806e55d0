# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""3 x 3 convolution with stride 1 and padding 1: the dearest single layer of the light models.

Winograd's method takes a quarter of the multiplications. Its rounding errors are larger than
those of plain sums: 1e-5 of the largest output.

Shape shorthand:
    BT: frames; C, C': channels before and after
    h, w: feature size
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.choice import Operation
from ausm_d2.kernels.winograd.call import Conv3x3Call
from ausm_d2.kernels.winograd.cpu import CpuWinograd


def _reference(call: Conv3x3Call) -> tuple[Tensor]:
    return (F.conv2d(call.x, call.weight, padding=1),)


CONV3X3: Operation[Conv3x3Call] = Operation("3 x 3 convolution", _reference, [CpuWinograd()])


def conv3x3(x: Tensor, weight: Tensor, *, kernels: str = "auto") -> Tensor:
    """Convolution with padding 1, without bias.

    Args:
        x: (BT, C, h, w).
        weight: (C', C, 3, 3).
        kernels: one of ``choice.NAMES``.

    Returns:
        (BT, C', h, w).
    """
    (y,) = CONV3X3(Conv3x3Call(x, weight), kernels)
    return y
