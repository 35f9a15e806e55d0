# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Base class of our own convolution kernels (C++, Triton): autograd, dtypes, layouts, in-place states.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; K: width of the convolution.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ausm_d2.kernels.choice import Kernel
from ausm_d2.kernels.conv.call import ConvCall
from ausm_d2.kernels.layout import overwritten, plain, rows


class ConvInputs(NamedTuple):
    """The tensors of a :class:`ConvCall` as the kernels take them, or their gradients.

    The weight is transposed to (K, E). x and initial have one dtype; weight and bias are float32. x has stride 1 over
    channels, the others are contiguous.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    initial: Tensor | None


class FusedConv(Kernel[ConvCall]):
    """A convolution with a forward and a backward kernel."""

    dtypes: tuple[torch.dtype, ...]
    """Dtypes of activations that the kernels support; others are converted to float32."""

    @abstractmethod
    def forward(self, inputs: ConvInputs, last: Tensor) -> Tensor:
        """Return y (N, T, E) and write the last K inputs to ``last`` (N, E, K), which may be ``inputs.initial``."""

    @abstractmethod
    def backward(self, inputs: ConvInputs, dy: Tensor, dlast: Tensor | None, start: bool) -> ConvInputs:
        """Gradients of all inputs; that of ``initial`` only if ``start``."""

    def fits(self, call: ConvCall) -> bool:
        return call.x.dtype != torch.float64

    def run(self, call: ConvCall) -> tuple[Tensor, Tensor]:
        x = call.x
        dtype = x.dtype if x.dtype in self.dtypes else torch.float32
        before = plain(call.initial, dtype)
        weight, bias = plain(call.weight.T, torch.float32), plain(call.bias, torch.float32)
        y, last = _CausalConv.apply(self, call.inplace, rows(x, dtype), weight, bias, before)
        return y.to(x.dtype), overwritten(last.to(x.dtype), before, call.initial, call.inplace)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: FusedConv, inplace: bool, *tensors: Any) -> tuple[Tensor, Tensor]:
        inputs = ConvInputs(*tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.kernel = kernel
        x = inputs.x
        if inplace and inputs.initial is not None:
            last = inputs.initial
        else:
            last = x.new_empty(len(x), x.shape[2], len(inputs.weight))
        return kernel.forward(inputs, last), last

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        inputs = ConvInputs(*ctx.saved_tensors)
        dy = torch.zeros_like(inputs.x) if dy is None else rows(dy, inputs.x.dtype)
        start = ctx.needs_input_grad[-1]
        return None, None, *ctx.kernel.backward(inputs, dy, plain(dlast, inputs.x.dtype), start)
