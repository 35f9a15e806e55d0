# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Compares a kernel with its reference on a small input, at its first use on this machine.

The reference runs on the CPU in float64. The comparison has no side effects: it uses its own random generator, and
suspends autograd mode and hooks, autocast, inference mode and dispatch modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from ausm_d2.kernels.autocast import outside_autocast


class Probe(Protocol):
    def __call__(self, like: Tensor | None, *shape: int) -> Any:
        """Normal random numbers in the dtype of ``like``; None for None."""


def is_fake(call: Any) -> bool:
    """Whether the tensors have no values (FakeTensorMode), so that nothing can be compared."""
    return any(isinstance(value, FakeTensor) for value in call)


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: a comparison would be captured too, or fail."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def difference(run: Callable[[Any], Any], reference: Callable[[Any], Any], call: Any) -> str | None:
    """Compare a kernel with its reference for calls of the form of ``call``.

    Compared are the results, the gradients if ``call`` needs them, and the inputs afterwards, since a kernel may
    overwrite only what the reference overwrites.

    Args:
        run: the kernel: call -> tuple of tensors.
        reference: the implementation in plain PyTorch.
        call: a NamedTuple with the methods of :class:`ausm_d2.kernels.choice.Call`.

    Returns:
        None if they agree; else the difference, worded to follow the kernel's name in a message.
    """
    learns, device = call.learns(), call.device
    with _undisturbed(device, learns):
        probe = call.probe(_random_numbers())
        exact = _converted(probe, lambda x: x.double().requires_grad_(learns))
        tensors = _converted(probe, lambda x: x.to(device, copy=True).requires_grad_(learns))
        wanted = _results(reference, exact, learns)
        try:
            found = _results(run, tensors, learns)
            return _first_difference(found, wanted, _tolerance(probe))
        except Exception as error:  # compiler, driver, package built for another PyTorch, ...
            lines = str(error).strip().splitlines() or [""]
            return f"raised {type(error).__name__}: {lines[0][:200]}"


@contextmanager
def _undisturbed(device: torch.device, learns: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(learns))
        # Activation checkpointing counts saved tensors by hooks.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_identity, _identity))
        stack.enter_context(outside_autocast(torch.empty(0, device="cpu")))
        stack.enter_context(outside_autocast(torch.empty(0, device=device)))
        yield


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _random_numbers() -> Probe:
    generator = torch.Generator(device="cpu").manual_seed(0)

    def random(like: Tensor | None, *shape: int) -> Any:
        if like is None:
            return None
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32).to(like.dtype)

    return random


def _converted(call: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    return call._replace(**{name: convert(value) for name, value in _tensors(call).items()})


def _tensors(call: Any) -> dict[str, Tensor]:
    return {name: value for name, value in call._asdict().items() if isinstance(value, Tensor)}


def _results(run: Callable[[Any], Any], call: Any, learns: bool) -> dict[str, Tensor]:
    """Results, inputs afterwards and gradients by name, on the CPU in float64."""
    outputs = run(call)
    named = {f"result {i + 1}": output for i, output in enumerate(outputs)}
    inputs = _tensors(call)
    named |= {f"{name}, afterwards,": value for name, value in inputs.items()}
    if learns:
        # Fixed output gradients of magnitude one, the same for kernel and reference.
        weights = [torch.linspace(-1, 1, each.numel(), dtype=torch.float64).cos().view(each.shape) for each in outputs]
        weights = [weight.to(each.device, each.dtype) for weight, each in zip(weights, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, list(inputs.values()), weights)
        named |= {f"the gradient of {name}": each for name, each in zip(inputs, gradients, strict=True)}
    return {name: value.detach().to("cpu", torch.float64) for name, value in named.items()}


def _tolerance(call: Any) -> float:
    """Tolerance relative to the largest value: covers fast approximations and the rounding of activations."""
    return max(1e-3, *(4 * torch.finfo(value.dtype).eps for value in _tensors(call).values()))


def _first_difference(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> str | None:
    for name, expected in wanted.items():
        if found[name].shape != expected.shape:
            return f"differs from the reference: {name} is {tuple(found[name].shape)}, not {tuple(expected.shape)}"
        allowed = 2 * tolerance if name.startswith("the gradient") else tolerance
        error = float((found[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not error <= allowed:  # also true for NaN
            return f"differs from the reference: {name} by {error:.1e} of its largest value, {allowed:.0e} is allowed"
    return None
