# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The scan by the CUDA kernels of the package mamba_ssm (2.x).

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size.

* From the zero state: ``selective_scan_fn``, on (N, E, T). Its last state has no gradient; if needed, the reference
  computes it.
* From a given state, without gradients: ``selective_state_update``, one frame at a time, in place.
* From a given state, with gradients: not supported by mamba_ssm; another kernel runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ausm_d2.kernels.installed import InstalledKernel
from ausm_d2.kernels.layout import overwritten, plain, working_state
from ausm_d2.kernels.scan.call import ScanCall
from ausm_d2.kernels.scan.reference import scan

_MAX_STATES = 256
_MAX_BLOCKS = 65535  # in the second grid dimension: channels of the scan, sequences of the step


class MambaSsmScan(InstalledKernel[ScanCall]):
    package, extension = "mamba_ssm", "selective_scan_cuda"

    def fits(self, call: ScanCall) -> bool:
        (sequences, frames, channels), states = call.u.shape, call.A.shape[1]
        if states > _MAX_STATES or not self.takes(call.u, sequences * channels * max(frames, 2 * states)):
            return False
        if call.initial is None:
            return channels <= _MAX_BLOCKS
        return not call.learns() and sequences <= _MAX_BLOCKS

    def run(self, call: ScanCall) -> tuple[Tensor, Tensor]:
        dtype = call.u.dtype
        call = call._replace(
            **{name: getattr(call, name).to(dtype) for name in ("delta", "B", "C")},
            A=call.A.float(),
            D=plain(call.D, torch.float32),
            z=None if call.z is None else call.z.to(dtype),
            delta_bias=plain(call.delta_bias, torch.float32),
        )
        return _clip(call) if call.initial is None else _frame_by_frame(call, call.initial)


def _clip(call: ScanCall) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y, last = selective_scan_fn(
        *(call.u.mT, call.delta.mT, call.A, call.B.mT, call.C.mT),
        D=call.D,
        z=None if call.z is None else call.z.mT,
        delta_bias=call.delta_bias,
        delta_softplus=call.delta_softplus,
        return_last_state=True,
    )
    last = last.detach().contiguous()
    if call.learns():
        last = _LastState.apply(last, call.delta_softplus, *call._replace(D=None, z=None)[:9])
    return y.mT, last


class _LastState(torch.autograd.Function):
    """Identity on the last state, with the gradient that mamba_ssm does not compute."""

    @staticmethod
    def forward(ctx: Any, last: Tensor, delta_softplus: bool, *tensors: Any) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.delta_softplus = delta_softplus
        return last.view_as(last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        inputs = [None if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            call = ScanCall._make([*inputs, ctx.delta_softplus, False])
            _, last = scan(call)
        gradients = iter(torch.autograd.grad(last, [x for x in inputs if x is not None], gradient, allow_unused=True))
        return None, None, *(None if x is None else next(gradients) for x in inputs)


def _frame_by_frame(call: ScanCall, initial: Tensor) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    state = working_state(initial, torch.float32, call.inplace)
    # selective_state_update does not accept None for these.
    zeros = call.A.new_zeros(len(call.A))
    D, bias = (zeros if x is None else x for x in (call.D, call.delta_bias))
    outputs = []
    for t in range(call.u.shape[1]):
        u, delta, B, C = (x[:, t] for x in (call.u, call.delta, call.B, call.C))
        z = None if call.z is None else call.z[:, t]
        outputs.append(
            selective_state_update(state, u, delta, call.A, B, C, D, z, bias, dt_softplus=call.delta_softplus)
        )
    return torch.stack(outputs, dim=1), overwritten(state, state, initial, call.inplace)
