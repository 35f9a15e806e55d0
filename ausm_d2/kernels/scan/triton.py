# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The scan in Triton: triton_kernels.py.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ausm_d2.kernels import triton_launch
from ausm_d2.kernels.scan.fused import FusedScan, ScanGradients, ScanInputs
from ausm_d2.kernels.triton_launch import CHANNELS, shared_grid, strides


@functools.cache
def _kernels() -> Any:
    """Imported at first use: Triton may be missing, and its import is slow."""
    from ausm_d2.kernels.scan import triton_kernels

    return triton_kernels


class TritonScan(FusedScan):
    name = "triton"
    devices = triton_launch.DEVICES
    dtypes = triton_launch.DTYPES

    def unavailable(self) -> str | None:
        return triton_launch.why_not()

    def forward(self, inputs: ScanInputs, last: Tensor) -> Tensor:
        y = inputs.u.new_empty(inputs.u.shape)
        tensors = (*_tensors(inputs, y), last)
        _launch("scan_forward", inputs.u, *tensors, *_sizes(inputs), **_options(inputs))
        return y

    def backward(self, inputs: ScanInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ScanGradients:
        (sequences, frames, channels), states = inputs.u.shape, inputs.A.shape[1]
        programs, groups = shared_grid(inputs.u)
        options = _options(inputs)

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=dy.device)

        du, ddelta = (inputs.u.new_empty(inputs.u.shape) for _ in range(2))
        dz = None if inputs.z is None else torch.empty_like(du)
        dB, dC = (empty(groups, sequences, frames, states) for _ in range(2))
        dA, dD, dbias = empty(programs, channels, states), empty(programs, channels), empty(programs, channels)
        dinitial = empty(*inputs.initial.shape) if start and inputs.initial is not None else None
        scratch = empty(programs, groups, frames, options["BE"], options["BS"])
        _launch(
            "scan_backward",
            inputs.u,
            *_tensors(inputs, dy),
            dlast,
            *(du, ddelta, dz, dB, dC, dA, dD, dbias, dinitial, scratch),
            *_sizes(inputs, dy),
            **options,
        )
        dtype = inputs.B.dtype
        return ScanGradients(
            *(du, ddelta, dA.sum(0), dB.sum(0).to(dtype), dC.sum(0).to(dtype), dD.sum(0), dz, dbias.sum(0), dinitial)
        )


def _launch(kernel: str, x: Tensor, *arguments: Any, **options: Any) -> None:
    triton_launch.launch(getattr(_kernels(), kernel), shared_grid(x), x, *arguments, **options)


def _tensors(inputs: ScanInputs, y: Tensor) -> tuple[Tensor | None, ...]:
    x = inputs
    return x.u, x.delta, x.z, x.B, x.C, y, x.A, x.D, x.delta_bias, x.initial


def _sizes(inputs: ScanInputs, *more: Tensor) -> tuple[int, ...]:
    tensors = (inputs.u, inputs.delta, inputs.z, inputs.B, inputs.C, *more)
    return *(stride for x in tensors for stride in strides(x)), *inputs.u.shape, inputs.A.shape[1]


def _options(inputs: ScanInputs) -> dict[str, Any]:
    states = 1 << (inputs.A.shape[1] - 1).bit_length()
    return {"SOFTPLUS": inputs.delta_softplus, "BE": CHANNELS, "BS": states}
