# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What the backends with fused kernels share: autograd, dtypes, layouts, states that are overwritten.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size; K: width of the convolution.

Only the inputs are saved for the backward pass, which recomputes the states from the initial one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ScanInputs(NamedTuple):
    """As in :func:`ausm_d2.kernels.scan.selective_scan`, with all activations in one dtype and their rows
    without gaps (at any distance over frames and sequences), everything else in float32 and contiguous."""

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
    """Of the inputs of the same names."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor | None
    delta_bias: Tensor
    initial: Tensor | None


class ConvInputs(NamedTuple):
    """As in :func:`ausm_d2.kernels.scan.causal_conv`, with the weight as (K, E)."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    initial: Tensor | None


class FusedBackend(ABC):
    """Kernels, and the two operations made of them."""

    activation_dtypes: tuple[torch.dtype, ...]
    """What the kernels take; other activations go through them as float32."""

    @abstractmethod
    def supports(self, x: Tensor) -> bool:
        """Whether there are kernels for activations like ``x``.

        Raises:
            CompileError: there would be, but they cannot be compiled here.
        """

    @abstractmethod
    def scan_forward(self, inputs: ScanInputs, last: Tensor) -> Tensor:
        """y (N, T, E); the last state is written to ``last`` (N, E, S), which may be ``inputs.initial``."""

    @abstractmethod
    def scan_backward(self, inputs: ScanInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ScanGradients:
        """Gradients, that of the initial state only if ``start``."""

    @abstractmethod
    def conv_forward(self, inputs: ConvInputs, last: Tensor) -> Tensor:
        """y (N, T, E); the last inputs are written to ``last`` (N, E, K), which may be ``inputs.initial``."""

    @abstractmethod
    def conv_backward(self, inputs: ConvInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ConvInputs:
        """Gradients of the inputs, that of the initial ones only if ``start``."""

    def selective_scan(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        initial_state: Tensor | None,
        inplace: bool,
    ) -> tuple[Tensor, Tensor]:
        """See :func:`ausm_d2.kernels.scan.selective_scan`."""
        dtype = self._activation_dtype(u)
        initial = _plain(initial_state, torch.float32)
        tensors = (
            *(_rows(x, dtype) for x in (u, delta)),
            _plain(A, torch.float32),
            *(_rows(x, dtype) for x in (B, C)),
            _plain(D, torch.float32),
            _rows(z, dtype),
            _plain(delta_bias, torch.float32),
            initial,
        )
        y, last = _SelectiveScan.apply(self, inplace, delta_softplus, *tensors)
        return y.to(u.dtype), _overwritten(last, initial, initial_state, inplace)

    def causal_conv(
        self, x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor | None, inplace: bool
    ) -> tuple[Tensor, Tensor]:
        """See :func:`ausm_d2.kernels.scan.causal_conv`."""
        dtype = self._activation_dtype(x)
        before = _plain(initial, dtype)
        y, last = _CausalConv.apply(
            self, inplace, _rows(x, dtype), _plain(weight.T, torch.float32), _plain(bias, torch.float32), before
        )
        return y.to(x.dtype), _overwritten(last.to(x.dtype), before, initial, inplace)

    def _activation_dtype(self, x: Tensor) -> torch.dtype:
        return x.dtype if x.dtype in self.activation_dtypes else torch.float32


def _rows(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None:
        return None
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _plain(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _overwritten(last: Tensor, worked_on: Tensor | None, given: Tensor | None, inplace: bool) -> Tensor:
    """In place, the caller's own tensor, which may not be the one that the kernel could work on."""
    if not inplace or given is None:
        return last
    return given if worked_on is given else given.copy_(last)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: FusedBackend, inplace: bool, delta_softplus: bool, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        inputs = ScanInputs(*tensors)._replace(delta_softplus=delta_softplus)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.backend, ctx.delta_softplus = backend, delta_softplus
        if inplace and inputs.initial is not None:
            last = inputs.initial
        else:
            last = inputs.A.new_empty(len(inputs.u), *inputs.A.shape)
        return backend.scan_forward(inputs, last), last

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        inputs = ScanInputs(*ctx.saved_tensors)._replace(delta_softplus=ctx.delta_softplus)
        dy = torch.zeros_like(inputs.u) if dy is None else _rows(dy, inputs.u.dtype)
        gradients = ctx.backend.scan_backward(inputs, dy, _plain(dlast, torch.float32), ctx.needs_input_grad[-1])
        gradients = gradients._replace(
            D=None if inputs.D is None else gradients.D,
            delta_bias=None if inputs.delta_bias is None else gradients.delta_bias,
        )
        return None, None, None, *gradients


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: FusedBackend, inplace: bool, *tensors: Any) -> tuple[Tensor, Tensor]:
        inputs = ConvInputs(*tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.backend = backend
        x = inputs.x
        if inplace and inputs.initial is not None:
            last = inputs.initial
        else:
            last = x.new_empty(len(x), x.shape[2], len(inputs.weight))
        return backend.conv_forward(inputs, last), last

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        inputs = ConvInputs(*ctx.saved_tensors)
        dy = torch.zeros_like(inputs.x) if dy is None else _rows(dy, inputs.x.dtype)
        return (
            None,
            None,
            *ctx.backend.conv_backward(inputs, dy, _plain(dlast, inputs.x.dtype), ctx.needs_input_grad[-1]),
        )
