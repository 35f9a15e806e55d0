# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The causal convolution in plain PyTorch: any device, any dtype, gradients by autograd.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; K: width of the convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.conv.call import ConvCall


def inputs_from_the_start(call: ConvCall) -> Tensor:
    """(N, K + T, E): the K inputs before the first frame, then the inputs of all frames."""
    x, width = call.x, call.weight.shape[1]
    before = x.new_zeros(len(x), x.shape[2], width) if call.initial is None else call.initial
    return torch.cat([before.transpose(1, 2).to(x.dtype), x], dim=1)


def last_inputs(call: ConvCall) -> Tensor:
    """(N, E, K): the last K inputs, reaching back before the first frame if needed."""
    frames, width = call.x.shape[1], call.weight.shape[1]
    if frames >= width:
        return call.x[:, frames - width :].transpose(1, 2)
    return inputs_from_the_start(call)[:, frames:].transpose(1, 2)


def conv(call: ConvCall) -> tuple[Tensor, Tensor]:
    """See :func:`ausm_d2.kernels.conv.causal_conv`."""
    x, frames, width = call.x, call.x.shape[1], call.weight.shape[1]
    inputs, weight = inputs_from_the_start(call), call.weight.to(x.dtype)
    # Frame t uses inputs t + 1 to t + K; weight K - 1 is that of the current frame.
    y = sum((inputs[:, k + 1 : k + 1 + frames] * weight[:, k] for k in range(width)), call.bias.to(x.dtype))
    last = inputs[:, frames:].transpose(1, 2)
    if call.inplace and call.initial is not None:
        last = call.initial.copy_(last)
    return F.silu(y), last
