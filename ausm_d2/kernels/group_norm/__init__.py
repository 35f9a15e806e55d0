# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Group norm, sum and ReLU on channels-last features: PyTorch's takes them too, but its variance is less accurate then.

Shape shorthand:
    BT: frames
    C: channels
    h, w: feature size
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.choice import Operation
from ausm_d2.kernels.group_norm.call import GroupNormCall
from ausm_d2.kernels.group_norm.cpu import CpuGroupNorm


def _reference(call: GroupNormCall) -> tuple[Tensor]:
    y = F.group_norm(call.x.contiguous(), call.groups, call.weight, call.bias, call.eps)
    y = y if call.add is None else y + call.add
    return (F.relu(y) if call.relu else y,)


GROUP_NORM: Operation[GroupNormCall] = Operation("group norm", _reference, [CpuGroupNorm()])


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    add: Tensor | None = None,
    relu: bool = False,
    kernels: str = "auto",
) -> Tensor:
    """
    Args:
        x: (BT, C, h, w), best channels last.
        weight, bias: (C,).
        add: (BT, C, h, w), added to the norm.
        relu: apply ReLU last.
        kernels: one of ``choice.NAMES``.

    Returns:
        (BT, C, h, w).
    """
    (y,) = GROUP_NORM(GroupNormCall(x, groups, weight, bias, eps, relu, add), kernels)
    return y
