# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Base class of our own kernels of scan and convolution (C++, Triton): autograd, dtypes, layouts, in-place states.

Only the inputs are saved for the backward pass, which recomputes the states from the initial one.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ausm_d2.kernels.choice import Call, Kernel
from ausm_d2.kernels.layout import overwritten, plain, rows


class RecurrentCall(Call, Protocol):
    """A NamedTuple of tensors, of which the first is an activation and the last the initial state; then of flags."""

    @property
    def initial(self) -> Tensor | None: ...

    @property
    def inplace(self) -> bool: ...

    def __getitem__(self, index: Any, /) -> Any: ...

    def __len__(self) -> int: ...


R = TypeVar("R", bound=RecurrentCall)
Gradients = tuple[Tensor | None, ...]


class FusedKernel(Kernel[R]):
    """A forward and a backward kernel of an operation that carries a state through the frames."""

    dtypes: tuple[torch.dtype, ...]
    """Dtypes of activations that the kernels support; others are converted to float32."""
    tensors: int
    """Number of tensors of a call."""

    @abstractmethod
    def prepared(self, call: R, dtype: torch.dtype) -> R:
        """The call as the kernels take it, with activations in ``dtype``."""

    @abstractmethod
    def new_state(self, call: R) -> Tensor:
        """Uninitialised memory for the state after a prepared call."""

    @abstractmethod
    def forward(self, call: R, last: Tensor) -> Tensor:
        """Return the output and write the last state to ``last``, which may be ``call.initial``."""

    @abstractmethod
    def backward(self, call: R, dy: Tensor, dlast: Tensor | None, start: bool) -> Gradients:
        """Gradients of the tensors of a prepared call, in their order; that of ``initial`` only if ``start``. Those of
        tensors that were not given are ignored."""

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Dtype of the state where the activations have ``dtype``."""
        return torch.float32

    def fits(self, call: R) -> bool:
        return call[0].dtype != torch.float64

    def run(self, call: R) -> tuple[Tensor, Tensor]:
        dtype = call[0].dtype
        prepared = self.prepared(call, dtype if dtype in self.dtypes else torch.float32)
        y, last = _Recurrent.apply(self, type(call), prepared[self.tensors :], *prepared[: self.tensors])
        last = last.to(self.state_dtype(dtype))
        return y.to(dtype), overwritten(last, prepared.initial, call.initial, call.inplace)


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: FusedKernel[Any], kind: Any, flags: tuple[Any, ...], *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        call = kind(*tensors, *flags)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.kernel, ctx.kind, ctx.flags = kernel, kind, flags
        last = call.initial if call.inplace and call.initial is not None else kernel.new_state(call)
        return kernel.forward(call, last), last

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        dtype = tensors[0].dtype
        dy = torch.zeros_like(tensors[0]) if dy is None else rows(dy, dtype)
        dlast = plain(dlast, ctx.kernel.state_dtype(dtype))
        gradients = ctx.kernel.backward(ctx.kind(*tensors, *ctx.flags), dy, dlast, ctx.needs_input_grad[-1])
        wanted = (None if tensor is None else each for tensor, each in zip(tensors, gradients, strict=True))
        return None, None, None, *wanted
