# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Which kernel runs an operation: one chooser, one environment variable, one warning policy.

An :class:`Operation` has a reference in plain PyTorch, which is always there, and kernels in the order in which
``auto`` tries them. A kernel is taken where it can run (its package or compiler is there), where it fits the inputs,
and where it agreed with the reference on a small input the first time it was used (``first_use.py``).

Who decides, the first that speaks: :func:`use_kernels` (tests, benchmarks); the environment variable ``AUSM_KERNELS``;
the model (``MODEL.AUSM.KERNELS``, kept by its layers); else ``auto``.

Warnings: each of these is said once in a process. ``auto`` runs the reference because a kernel for this device cannot
run here; a kernel disagreed with the reference or raised. A kernel that was asked for by name and cannot run, or
disagrees, is an error instead.
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
        """Whether autograd will ask for gradients."""

    def form(self) -> Hashable:
        """What decides how a kernel is compiled and which of its branches run: dtypes, what is left out, ..."""

    def probe(self, random: Probe) -> Self:
        """A small call of the same form; ``random(like, *shape)`` makes its tensors."""


C = TypeVar("C", bound=Call)


class Kernel(ABC, Generic[C]):
    """One form of an operation other than its reference."""

    name: str
    """One of NAMES."""
    devices: tuple[str, ...]
    """Types of devices it runs on."""

    def unavailable(self) -> str | None:
        """Why it cannot run in this process (what is not installed), in one line; None if it can."""
        return None

    def fits(self, call: C) -> bool:
        """Whether it computes calls like this one. Never changes between calls of one form and size."""
        return True

    @abstractmethod
    def run(self, call: C) -> tuple[Tensor, ...]:
        """The results of the operation."""


class Operation(Generic[C]):
    """
    Attributes:
        name: in messages.
        reference: the operation in plain PyTorch.
        kernels: in the order in which ``auto`` tries them.
    """

    def __init__(self, name: str, reference: Callable[[C], tuple[Tensor, ...]], kernels: Sequence[Kernel[C]]) -> None:
        self.name = name
        self.reference = reference
        self.kernels = tuple(kernels)
        OPERATIONS.append(self)

    def __call__(self, call: C, kernels: str = "auto") -> tuple[Tensor, ...]:
        """The results.

        Args:
            call: the arguments.
            kernels: the model's choice, one of NAMES.

        Raises:
            UserError: the choice is unknown, or its kernel cannot run here or disagrees with the reference.
        """
        return self.choose(call, kernels)(call)

    def choose(self, call: C, kernels: str = "auto") -> Callable[[C], tuple[Tensor, ...]]:
        """What :meth:`__call__` runs."""
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
            if device not in kernel.devices:
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
        """What is wrong with a kernel, found at the first call of each form; None if it agrees with the reference."""
        form = (self.name, kernel.name, call.device, call.form(), call.learns())
        if form in _agreed:
            return None
        found = _problems.get(form[:2])
        if found is not None or is_fake(call):
            return found
        if is_capturing(call.device):
            return "was first used while a CUDA graph was captured, where it cannot be compared with the reference"
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
    """A layer that runs operations with kernels."""

    kernels: str = "auto"
    """The model's choice, for the operations that the layer calls; see :func:`set_kernels`."""


def set_kernels(model: nn.Module, name: str) -> None:
    """Make ``name`` the choice of all layers of a model.

    Raises:
        UserError: it is unknown, or what it needs is not installed here.
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
    """Override every other choice while the context lasts; None lets them decide."""
    global _override
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def decided(model_choice: str = "auto") -> tuple[str, str]:
    """The choice, and who made it, for messages.

    Raises:
        UserError: it is unknown.
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
    """Compare every kernel with its reference again when it is next used, and say again what was said."""
    _agreed.clear()
    _problems.clear()
    _warned.clear()


def _refuse_unavailable(operation: Operation[C], kernel: Kernel[C], call: C, where: str) -> None:
    device = call.device.type
    reason = kernel.unavailable()
    if reason is None and device not in kernel.devices:
        reason = f"it has kernels for {' and '.join(kernel.devices)}, the {operation.name}'s tensors are on {device}"
    if reason is not None:
        raise _cannot_run(where, kernel.name, reason)


def _cannot_run(where: str, name: str, reason: str) -> UserError:
    return UserError(f"{where}: '{name}' cannot run here: {reason}; expected another of {', '.join(NAMES)}")


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=5)
