# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""A kernel beside its reference, on a small input: is it right on this machine?

The reference runs on the CPU in float64. The comparison leaves everything around it as it was: its numbers come from a
generator of its own, and autograd's mode and hooks, autocast, inference mode and dispatch modes are set aside.
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
    """Whether the tensors have no values (FakeTensorMode): there is nothing to compare then."""
    return any(isinstance(value, FakeTensor) for value in call)


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured; a comparison would be captured too, or fail."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def difference(run: Callable[[Any], Any], reference: Callable[[Any], Any], call: Any) -> str | None:
    """What is wrong with a kernel for calls of the form of ``call``, as the end of a sentence; None if nothing.

    Results are compared; gradients too where ``call`` needs them; and the inputs, which a kernel may overwrite only
    where the reference does.

    Args:
        run: the kernel, from the call to a tuple of tensors.
        reference: the same in plain PyTorch.
        call: a NamedTuple with the methods of :class:`ausm_d2.kernels.choice.Call`.
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
        except Exception as error:  # a compiler, a driver, a package built for another PyTorch: anything
            lines = str(error).strip().splitlines() or [""]
            return f"raised {type(error).__name__}: {lines[0][:200]}"


@contextmanager
def _undisturbed(device: torch.device, learns: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(learns))
        # Activation checkpointing counts what is saved for the backward pass, by hooks.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is))
        stack.enter_context(outside_autocast(torch.empty(0, device="cpu")))
        stack.enter_context(outside_autocast(torch.empty(0, device=device)))
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
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
    """By name, on the CPU in float64: results, the inputs afterwards, and gradients."""
    outputs = run(call)
    named = {f"result {i + 1}": output for i, output in enumerate(outputs)}
    inputs = _tensors(call)
    named |= {f"{name}, afterwards,": value for name, value in inputs.items()}
    if learns:
        # Any numbers of size one, the same for both.
        weights = [torch.linspace(-1, 1, each.numel(), dtype=torch.float64).cos().view(each.shape) for each in outputs]
        weights = [weight.to(each.device, each.dtype) for weight, each in zip(weights, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, list(inputs.values()), weights)
        named |= {f"the gradient of {name}": each for name, each in zip(inputs, gradients, strict=True)}
    return {name: value.detach().to("cpu", torch.float64) for name, value in named.items()}


def _tolerance(call: Any) -> float:
    """Relative to the largest number: of a kernel with fast approximations, and of the rounding of activations."""
    return max(1e-3, *(4 * torch.finfo(value.dtype).eps for value in _tensors(call).values()))


def _first_difference(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> str | None:
    for name, expected in wanted.items():
        if found[name].shape != expected.shape:
            return f"differs from the reference: {name} is {tuple(found[name].shape)}, not {tuple(expected.shape)}"
        allowed = 2 * tolerance if name.startswith("the gradient") else tolerance
        error = float((found[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not error <= allowed:  # nor is NaN
            return f"differs from the reference: {name} by {error:.1e} of its largest number, {allowed:.0e} is allowed"
    return None
