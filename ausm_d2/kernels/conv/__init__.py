# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The causal convolution of Mamba, for many short sequences.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; K: width of the convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ausm_d2.kernels.choice import Operation
from ausm_d2.kernels.conv.call import ConvCall
from ausm_d2.kernels.conv.cpu import CpuConv
from ausm_d2.kernels.conv.mamba_ssm import MambaSsmConv
from ausm_d2.kernels.conv.reference import conv
from ausm_d2.kernels.conv.triton import TritonConv

CONV: Operation[ConvCall] = Operation("causal convolution", conv, [CpuConv(), MambaSsmConv(), TritonConv()])


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial: Tensor | None = None,
    *,
    inplace: bool = False,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution over time, then SiLU.

    Args:
        x: (N, T, E).
        weight: (E, K); the last column is the weight of the current frame.
        bias: (E,).
        initial: (N, E, K), the K inputs before the first frame, latest last; None: zeros.
        inplace: overwrite ``initial`` with the last K inputs (without autograd only).
        kernels: one of ``choice.NAMES``.

    Returns:
        (N, T, E) in the dtype of ``x``, and the last K inputs, (N, E, K).

    Raises:
        RuntimeError: if ``inplace`` is set while autograd records.
    """
    if inplace and torch.is_grad_enabled():
        raise RuntimeError("inplace=True needs torch.no_grad(): autograd needs the old state")
    y, last = CONV(ConvCall(x, weight, bias, initial, inplace), kernels)
    return y, last
