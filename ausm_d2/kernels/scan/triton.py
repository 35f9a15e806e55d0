# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The fused CUDA backend: triton_kernels.py.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size; K: width of the convolution;
P: programs that share the sequences; G: groups of channels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ausm_d2.kernels.scan.autograd import ConvInputs, FusedBackend, ScanGradients, ScanInputs
from ausm_d2.kernels.triton_runs import launch, triton_runs

_CHANNELS = 64  # of a group
_PROGRAMS_PER_PROCESSOR = 16  # enough of them in flight to hide the latency of memory


@functools.cache
def _kernels() -> Any:
    """Imported late: Triton is not everywhere, and takes a while."""
    from ausm_d2.kernels.scan import triton_kernels

    return triton_kernels


class TritonBackend(FusedBackend):
    activation_dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def supports(self, x: Tensor) -> bool:
        return triton_runs(x)

    def scan_forward(self, inputs: ScanInputs, last: Tensor) -> Tensor:
        y = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=inputs.u.device)
        tensors = (*_scan_tensors(inputs, y), last)
        _launch("scan_forward", inputs.u, *tensors, *_scan_sizes(inputs), **_scan_options(inputs))
        return y

    def scan_backward(self, inputs: ScanInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ScanGradients:
        (sequences, frames, channels), states = inputs.u.shape, inputs.A.shape[1]
        programs, groups = _grid(inputs.u)
        options = _scan_options(inputs)

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=dy.device)

        du, ddelta = (empty(*inputs.u.shape, dtype=inputs.u.dtype) for _ in range(2))
        dz = None if inputs.z is None else torch.empty_like(du)
        dB, dC = (empty(groups, sequences, frames, states) for _ in range(2))
        dA, dD, dbias = empty(programs, channels, states), empty(programs, channels), empty(programs, channels)
        dinitial = empty(*inputs.initial.shape) if start and inputs.initial is not None else None
        scratch = empty(programs, groups, frames, options["BE"], options["BS"])
        _launch(
            "scan_backward",
            inputs.u,
            *_scan_tensors(inputs, dy),
            dlast,
            *(du, ddelta, dz, dB, dC, dA, dD, dbias, dinitial, scratch),
            *_scan_sizes(inputs, dy),
            **options,
        )
        dtype = inputs.B.dtype
        return ScanGradients(
            *(du, ddelta, dA.sum(0), dB.sum(0).to(dtype), dC.sum(0).to(dtype), dD.sum(0), dz, dbias.sum(0), dinitial)
        )

    def conv_forward(self, inputs: ConvInputs, last: Tensor) -> Tensor:
        y = torch.empty(inputs.x.shape, dtype=inputs.x.dtype, device=inputs.x.device)
        sizes = (*_strides(inputs.x), *inputs.x.shape)
        _launch("conv_forward", inputs.x, *inputs, y, last, *sizes, K=len(inputs.weight), BE=_CHANNELS)
        return y

    def conv_backward(self, inputs: ConvInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ConvInputs:
        programs, _ = _grid(inputs.x)
        dx = torch.empty(inputs.x.shape, dtype=inputs.x.dtype, device=dy.device)
        gradient = torch.empty(inputs.x.shape, device=dy.device)
        dweight, dbias = (torch.empty(programs, *like.shape, device=dy.device) for like in (inputs.weight, inputs.bias))
        dinitial = torch.empty_like(inputs.initial) if start and inputs.initial is not None else None
        _launch(
            "conv_backward",
            inputs.x,
            *inputs,
            *(dy, dlast, dx, dinitial, gradient, dweight, dbias),
            *(*_strides(inputs.x), *_strides(dy), *inputs.x.shape),
            K=len(inputs.weight),
            BE=_CHANNELS,
        )
        return ConvInputs(dx, dweight.sum(0), dbias.sum(0), dinitial)


def _grid(x: Tensor) -> tuple[int, int]:
    """(P, G)."""
    groups = -(-x.shape[2] // _CHANNELS)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    return max(1, min(len(x), _PROGRAMS_PER_PROCESSOR * processors // groups)), groups


def _launch(kernel: str, x: Tensor, *arguments: Any, **options: Any) -> None:
    launch(getattr(_kernels(), kernel), _grid(x), x, *arguments, **options)


def _strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


def _scan_tensors(inputs: ScanInputs, y: Tensor) -> tuple[Tensor | None, ...]:
    x = inputs
    return x.u, x.delta, x.z, x.B, x.C, y, x.A, x.D, x.delta_bias, x.initial


def _scan_sizes(inputs: ScanInputs, *more: Tensor) -> tuple[int, ...]:
    tensors = (inputs.u, inputs.delta, inputs.z, inputs.B, inputs.C, *more)
    return *(stride for x in tensors for stride in _strides(x)), *inputs.u.shape, inputs.A.shape[1]


def _scan_options(inputs: ScanInputs) -> dict[str, Any]:
    states = 1 << (inputs.A.shape[1] - 1).bit_length()
    return {"SOFTPLUS": inputs.delta_softplus, "BE": _CHANNELS, "BS": states}
