# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The causal convolution by the CUDA kernels of causal_conv1d (1.4 and later), the package that mamba_ssm uses for it.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; K: width of the convolution.

One frame from a given state, without gradients: ``causal_conv1d_update``, in place. Everything else:
``causal_conv1d_fn`` on (N, E, T) with channels last in memory, which is their layout here already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ausm_d2.kernels.conv.call import ConvCall
from ausm_d2.kernels.conv.reference import last_inputs
from ausm_d2.kernels.installed import InstalledKernel
from ausm_d2.kernels.layout import overwritten, working_state

_WIDTHS = (2, 3, 4)
_CHANNELS = 8  # the kernel needs E and the strides to be multiples of it


class MambaSsmConv(InstalledKernel[ConvCall]):
    package, extension = "causal_conv1d", "causal_conv1d_cuda"

    def fits(self, call: ConvCall) -> bool:
        (sequences, frames, channels), width = call.x.shape, call.weight.shape[1]
        if width not in _WIDTHS or channels % _CHANNELS:
            return False
        return self.takes(call.x, sequences * channels * max(frames, width))

    def run(self, call: ConvCall) -> tuple[Tensor, Tensor]:
        call = call._replace(weight=call.weight.float(), bias=call.bias.float())
        if call.initial is not None and call.x.shape[1] == 1 and not call.learns():
            return _one_frame(call, call.initial)
        return _clip(call)


def _one_frame(call: ConvCall, initial: Tensor) -> tuple[Tensor, Tensor]:
    from causal_conv1d import causal_conv1d_update

    state = working_state(initial, call.x.dtype, call.inplace)
    y = causal_conv1d_update(call.x[:, 0], state, call.weight, call.bias, activation="silu")
    return y[:, None], overwritten(state, state, initial, call.inplace)


def _clip(call: ConvCall) -> tuple[Tensor, Tensor]:
    from causal_conv1d import causal_conv1d_fn

    start = None
    if call.initial is not None:
        start = call.initial[:, :, 1:].to(call.x.dtype).mT.contiguous().mT
    y = causal_conv1d_fn(_channels_last(call.x).mT, call.weight, call.bias, initial_states=start, activation="silu")
    last = last_inputs(call)
    if call.inplace and call.initial is not None:
        last = call.initial.copy_(last)
    return y.mT, last


def _channels_last(x: Tensor) -> Tensor:
    """(N, T, E) with stride 1 over channels and the other strides as the kernel needs them."""
    if x.stride(2) == 1 and x.stride(1) >= x.shape[2] and not (x.stride(0) % _CHANNELS or x.stride(1) % _CHANNELS):
        return x
    return x.clone(memory_format=torch.contiguous_format)
