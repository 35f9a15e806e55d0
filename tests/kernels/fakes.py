# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""An operation and kernels that do not always tell the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.choice import OPERATIONS, Kernel, Operation


class SquareCall(NamedTuple):
    x: Tensor
    state: Tensor | None = None  # in place: the squares are added to it

    @property
    def device(self) -> torch.device:
        return self.x.device

    def learns(self) -> bool:
        return torch.is_grad_enabled() and self.x.requires_grad

    def form(self) -> Any:
        return self.x.dtype, self.state is None

    def probe(self, random: Any) -> Self:
        return self._replace(x=random(self.x, 5), state=random(self.state, 5))


def square(call: SquareCall) -> tuple[Tensor]:
    y = call.x * call.x
    return (y if call.state is None else call.state.add_(y),)


class SquareKernel(Kernel[SquareCall]):
    """
    Attributes:
        calls: the number of elements of every call.
    """

    devices = ("cpu",)

    def __init__(self, run: Callable[[SquareCall], tuple[Tensor]] = square, name: str = "cpu") -> None:
        self.name = name
        self.function = run
        self.reason: str | None = None
        self.calls: list[int] = []

    def unavailable(self) -> str | None:
        return self.reason

    def run(self, call: SquareCall) -> tuple[Tensor]:
        self.calls.append(call.x.numel())
        return self.function(call)


def squares(*kernels: SquareKernel) -> Operation[SquareCall]:
    """An operation that no model uses."""
    operation = Operation("square", square, kernels)
    OPERATIONS.remove(operation)
    return operation


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x  # half of it


def lies(call: SquareCall) -> tuple[Tensor]:
    return (square(call)[0] * 1.01,)


def lies_about_the_gradient(call: SquareCall) -> tuple[Tensor]:
    return (_WrongGradient.apply(call.x),)


def raises(call: SquareCall) -> tuple[Tensor]:
    raise ImportError("undefined symbol: _ZN3c10\nand more lines")


def forgets_a_number(call: SquareCall) -> tuple[Tensor]:
    return (square(call)[0][:-1],)


def gives_nan(call: SquareCall) -> tuple[Tensor]:
    return (square(call)[0] * float("nan"),)


def overwrites_its_input(call: SquareCall) -> tuple[Tensor]:
    y = square(call)
    with torch.no_grad():
        call.x.zero_()
    return y


def leaves_the_state(call: SquareCall) -> tuple[Tensor]:
    y = call.x * call.x
    return (y if call.state is None else call.state + y,)
