# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The scan in Triton: triton_kernels.py.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ausm_d2.kernels import triton_launch
from ausm_d2.kernels.fused import Gradients
from ausm_d2.kernels.scan.call import ScanCall
from ausm_d2.kernels.scan.fused import FusedScan
from ausm_d2.kernels.triton_launch import CHANNELS, Launcher, shared_grid, strides

launch = Launcher(__package__)


class TritonScan(FusedScan):
    name = "triton"
    devices = triton_launch.DEVICES
    dtypes = triton_launch.DTYPES

    def unavailable(self) -> str | None:
        return triton_launch.why_not()

    def forward(self, call: ScanCall, last: Tensor) -> Tensor:
        y = call.u.new_empty(call.u.shape)
        tensors = (*_tensors(call, y), last)
        launch("scan_forward", shared_grid(call.u), call.u, *tensors, *_sizes(call), **_options(call))
        return y

    def backward(self, call: ScanCall, dy: Tensor, dlast: Tensor | None, start: bool) -> Gradients:
        (sequences, frames, channels), states = call.u.shape, call.A.shape[1]
        programs, groups = shared_grid(call.u)
        options = _options(call)

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=dy.device)

        du, ddelta = (call.u.new_empty(call.u.shape) for _ in range(2))
        dz = None if call.z is None else torch.empty_like(du)
        dB, dC = (empty(groups, sequences, frames, states) for _ in range(2))
        dA, dD, dbias = empty(programs, channels, states), empty(programs, channels), empty(programs, channels)
        dinitial = empty(*call.initial.shape) if start and call.initial is not None else None
        scratch = empty(programs, groups, frames, options["BE"], options["BS"])
        tensors = (*_tensors(call, dy), dlast, du, ddelta, dz, dB, dC, dA, dD, dbias, dinitial, scratch)
        launch("scan_backward", (programs, groups), call.u, *tensors, *_sizes(call, dy), **options)
        dB, dC = (each.sum(0).to(call.B.dtype) for each in (dB, dC))
        return du, ddelta, dA.sum(0), dB, dC, dD.sum(0), dz, dbias.sum(0), dinitial


def _tensors(call: ScanCall, y: Tensor) -> tuple[Tensor | None, ...]:
    return call.u, call.delta, call.z, call.B, call.C, y, call.A, call.D, call.delta_bias, call.initial


def _sizes(call: ScanCall, *more: Tensor) -> tuple[int, ...]:
    tensors = (call.u, call.delta, call.z, call.B, call.C, *more)
    return *(stride for x in tensors for stride in strides(x)), *call.u.shape, call.A.shape[1]


def _options(call: ScanCall) -> dict[str, Any]:
    states = 1 << (call.A.shape[1] - 1).bit_length()
    return {"SOFTPLUS": call.delta_softplus, "BE": CHANNELS, "BS": states}
