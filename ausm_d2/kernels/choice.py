# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Selects the kernel that runs an operation.

An :class:`Operation` has a reference in plain PyTorch, which runs everywhere, and a list of kernels in the order in
which ``auto`` tries them. ``auto`` selects the first kernel that is available (its package or compiler is installed),
supports the inputs, and agreed with the reference on a small input at its first use (``first_use.py``).

Precedence: :func:`use_kernels` (tests, benchmarks), then the environment variable ``AUSM_KERNELS``, then the model
(``MODEL.AUSM.KERNELS``, stored in its layers).

Warnings, each issued once per process: ``auto`` runs the reference because a kernel for this device is unavailable; a
kernel raised or disagreed with the reference. For a kernel selected by name both are errors instead.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from ausm_d2.errors import UserError
from ausm_d2.kernels.first_use import Probe, difference, is_capturing, is_fake

NAMES = ("auto", "reference", "cpu", "triton", "mamba_ssm")
VARIABLE = "AUSM_KERNELS"
KEY = "MODEL.AUSM.KERNELS"


class Call(Protocol):
    """The arguments of one call of an operation; a NamedTuple."""

    @property
    def device(self) -> torch.device: ...

    def learns(self) -> bool:
        """Whether gradients are needed."""

    def form(self) -> Hashable:
        """Whatever determines how a kernel is compiled and which branches run: dtypes, omitted arguments, ..."""

    def probe(self, random: Probe) -> Self:
        """A small call of the same form, with tensors from ``random(like, *shape)``."""


C = TypeVar("C", bound=Call)


class Kernel(ABC, Generic[C]):
    """An implementation of an operation other than its reference."""

    name: str
    """One of NAMES."""
    devices: tuple[str, ...]
    """Device types it runs on."""
    automatic: bool = True
    """Whether ``auto`` may select it; if not, it runs only where it is chosen by name."""

    def unavailable(self) -> str | None:
        """Why it cannot run in this process, such as a missing package, in one line; None if it can."""
        return None

    def fits(self, call: C) -> bool:
        """Whether it supports this call. Constant for calls of one form and size."""
        return True

    @abstractmethod
    def run(self, call: C) -> tuple[Tensor, ...]:
        """The results of the operation."""


class Operation(Generic[C]):
    """
    Attributes:
        name: shown in messages.
        reference: the implementation in plain PyTorch.
        kernels: in the order in which ``auto`` tries them.
    """

    def __init__(self, name: str, reference: Callable[[C], tuple[Tensor, ...]], kernels: Sequence[Kernel[C]]) -> None:
        self.name = name
        self.reference = reference
        self.kernels = tuple(kernels)
        OPERATIONS.append(self)

    def __call__(self, call: C, kernels: str = "auto") -> tuple[Tensor, ...]:
        """Run the operation with the selected kernel.

        Args:
            call: the arguments.
            kernels: the model's choice, one of NAMES.

        Raises:
            UserError: if the choice is unknown, or its kernel is unavailable or disagrees with the reference.
        """
        return self.choose(call, kernels)(call)

    def choose(self, call: C, kernels: str = "auto") -> Callable[[C], tuple[Tensor, ...]]:
        """The function that :meth:`__call__` runs."""
        name, where = decided(kernels)
        if name == "reference":
            return self.reference
        if name != "auto":
            forced = next((kernel for kernel in self.kernels if kernel.name == name), None)
            if forced is not None:
                _refuse_unavailable(self, forced, call, where)
                if forced.fits(call):
                    return self._forced(forced, call, where)
        return self._auto(call)

    def _forced(self, kernel: Kernel[C], call: C, where: str) -> Callable[[C], tuple[Tensor, ...]]:
        problem = self._problem(kernel, call)
        if problem is not None:
            raise UserError(f"{where}: {kernel.name}'s {self.name} {problem}; expected another of {', '.join(NAMES)}")
        return kernel.run

    def _auto(self, call: C) -> Callable[[C], tuple[Tensor, ...]]:
        device = call.device.type
        missing = []
        for kernel in self.kernels:
            if device not in kernel.devices or not kernel.automatic:
                continue
            reason = kernel.unavailable()
            if reason is not None:
                missing.append(f"{kernel.name}: {reason}")
            elif kernel.fits(call):
                problem = self._problem(kernel, call)
                if problem is None:
                    return kernel.run
                _warn(f"{kernel.name}'s {self.name} {problem}; it is not used in this process")
        if missing:
            _warn(f"kernels for {device} are not used, PyTorch's slower reference is: {'; '.join(missing)}")
        return self.reference

    def _problem(self, kernel: Kernel[C], call: C) -> str | None:
        """Compare a kernel with the reference at the first call of each form; the difference, or None."""
        form = (self.name, kernel.name, call.device, call.form(), call.learns())
        if form in _agreed:
            return None
        found = _problems.get(form[:2])
        if found is not None or is_fake(call):
            return found
        if is_capturing(call.device):
            return "was first used during CUDA graph capture, when it cannot be compared with the reference"
        problem = difference(kernel.run, self.reference, call)
        if problem is None:
            _agreed.add(form)
        else:
            _problems[form[:2]] = problem
            _agreed.difference_update([each for each in _agreed if each[:2] == form[:2]])
        return problem


OPERATIONS: list[Operation[Any]] = []

_agreed: set[tuple[Any, ...]] = set()
_problems: dict[tuple[Any, ...], str] = {}
_warned: set[str] = set()
_override: str | None = None


class KernelLayer(nn.Module):
    """Base class of layers that call operations with kernels."""

    kernels: str = "auto"
    """The model's choice for the operations of this layer; see :func:`set_kernels`."""


def set_kernels(model: nn.Module, name: str) -> None:
    """Set the choice of all layers of a model.

    Raises:
        UserError: if the name is unknown, or the kernels are unavailable.
    """
    if name not in NAMES:
        raise UserError(f"{KEY}: '{name}' is not one of {', '.join(NAMES)}")
    chosen, where = decided(name)
    for operation in OPERATIONS:
        for kernel in operation.kernels:
            reason = kernel.unavailable() if kernel.name == chosen else None
            if reason is not None:
                raise _cannot_run(where, chosen, reason)
    for module in model.modules():
        if isinstance(module, KernelLayer):
            module.kernels = name


@contextmanager
def use_kernels(name: str | None) -> Iterator[None]:
    """A context that overrides every other choice; None removes the override."""
    global _override
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def decided(model_choice: str = "auto") -> tuple[str, str]:
    """The effective choice and its source, for messages.

    Raises:
        UserError: if the name is unknown.
    """
    if _override is not None:
        name, where = _override, "use_kernels"
    elif os.environ.get(VARIABLE):
        name, where = os.environ[VARIABLE], VARIABLE
    else:
        name, where = model_choice, KEY
    if name not in NAMES:
        raise UserError(f"{where}: found '{name}', expected one of {', '.join(NAMES)}")
    return name, where


def forget_checks() -> None:
    """Forget all comparisons and issued warnings: both are repeated at the next use."""
    _agreed.clear()
    _problems.clear()
    _warned.clear()


def _refuse_unavailable(operation: Operation[C], kernel: Kernel[C], call: C, where: str) -> None:
    device = call.device.type
    reason = kernel.unavailable()
    if reason is None and device not in kernel.devices:
        reason = f"it has kernels for {' and '.join(kernel.devices)}, the tensors of {operation.name} are on {device}"
    if reason is not None:
        raise _cannot_run(where, kernel.name, reason)


def _cannot_run(where: str, name: str, reason: str) -> UserError:
    return UserError(f"{where}: '{name}' cannot run here: {reason}; expected another of {', '.join(NAMES)}")


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=5)
