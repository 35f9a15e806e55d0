# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Base class of our own scan kernels (C++, Triton): autograd, dtypes, layouts, in-place states.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size.

Only the inputs are saved for the backward pass, which recomputes the states from the initial one.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ausm_d2.kernels.choice import Kernel
from ausm_d2.kernels.layout import overwritten, plain, rows
from ausm_d2.kernels.scan.call import ScanCall


class ScanInputs(NamedTuple):
    """The arguments of a :class:`ScanCall` as the kernels take them: activations in one dtype with stride 1 over
    channels, everything else float32 and contiguous."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial: Tensor | None
    delta_softplus: bool = False


class ScanGradients(NamedTuple):
    """Gradients of the fields of :class:`ScanInputs` with the same names."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor | None
    delta_bias: Tensor
    initial: Tensor | None


class FusedScan(Kernel[ScanCall]):
    """A scan with a forward and a backward kernel."""

    dtypes: tuple[torch.dtype, ...]
    """Dtypes of activations that the kernels support; others are converted to float32."""

    @abstractmethod
    def forward(self, inputs: ScanInputs, last: Tensor) -> Tensor:
        """Return y (N, T, E) and write the last state to ``last`` (N, E, S), which may be ``inputs.initial``."""

    @abstractmethod
    def backward(self, inputs: ScanInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ScanGradients:
        """Gradients of all inputs; that of ``initial`` only if ``start``."""

    def fits(self, call: ScanCall) -> bool:
        return call.u.dtype != torch.float64

    def run(self, call: ScanCall) -> tuple[Tensor, Tensor]:
        dtype = call.u.dtype if call.u.dtype in self.dtypes else torch.float32
        initial = plain(call.initial_state, torch.float32)
        tensors = (
            *(rows(x, dtype) for x in (call.u, call.delta)),
            plain(call.A, torch.float32),
            *(rows(x, dtype) for x in (call.B, call.C)),
            plain(call.D, torch.float32),
            rows(call.z, dtype),
            plain(call.delta_bias, torch.float32),
            initial,
        )
        y, last = _SelectiveScan.apply(self, call.inplace, call.delta_softplus, *tensors)
        return y.to(call.u.dtype), overwritten(last, initial, call.initial_state, call.inplace)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: FusedScan, inplace: bool, delta_softplus: bool, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        inputs = ScanInputs(*tensors)._replace(delta_softplus=delta_softplus)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.kernel, ctx.delta_softplus = kernel, delta_softplus
        if inplace and inputs.initial is not None:
            last = inputs.initial
        else:
            last = inputs.A.new_empty(len(inputs.u), *inputs.A.shape)
        return kernel.forward(inputs, last), last

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        inputs = ScanInputs(*ctx.saved_tensors)._replace(delta_softplus=ctx.delta_softplus)
        dy = torch.zeros_like(inputs.u) if dy is None else rows(dy, inputs.u.dtype)
        gradients = ctx.kernel.backward(inputs, dy, plain(dlast, torch.float32), ctx.needs_input_grad[-1])
        gradients = gradients._replace(
            D=None if inputs.D is None else gradients.D,
            delta_bias=None if inputs.delta_bias is None else gradients.delta_bias,
        )
        return None, None, None, *gradients
