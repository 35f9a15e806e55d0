# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""All kernels of the selective scan against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ausm_d2.kernels.choice import use_kernels
from ausm_d2.kernels.scan import selective_scan
from tests.kernels.interpreter import INTERPRETED
from tests.kernels.oracle import assert_near

# N, T, E, S: one frame, sizes that fill no vector, sizes that fill vectors exactly, the smallest of all; then one frame
# whose states are one, two or four vectors, of whatever width, and channels that fill none.
SIZES = [(3, 1, 5, 3), (2, 4, 37, 16), (1, 6, 64, 8), (2, 2, 80, 5), (1, 1, 1, 1)]
SIZES += [(3, 1, 37, 16), (2, 1, 35, 8), (2, 1, 20, 4), (1, 1, 21, 32), (1, 1, 18, 64)]
OPTIONAL = ("D", "z", "delta_bias", "initial_state")
LEFT_OUT = [(name,) for name in OPTIONAL]
if INTERPRETED:  # two groups of channels, more sequences than programs, the smallest
    SIZES, LEFT_OUT = [(2, 3, 66, 5), (5, 1, 3, 2), (1, 1, 1, 1)], [OPTIONAL]


def _inputs(n: int, t: int, e: int, s: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Strided as in the layer: z is half of a projection, B and C parts of another."""
    return {
        "u": torch.randn(n, t, e).to(dtype),
        "delta": torch.randn(n, t, e).to(dtype),
        "A": -torch.rand(e, s) * 4 - 0.01,
        "B": torch.randn(n, t, 2 * s + 3)[..., 3 : 3 + s].to(dtype),
        "C": torch.randn(n, t, 2 * s + 3)[..., 3 + s :].to(dtype),
        "D": torch.randn(e),
        "z": torch.randn(n, t, 2 * e).to(dtype)[..., e:],
        "delta_bias": torch.randn(e),
        "initial_state": torch.randn(n, e, s),
    }


def _double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in inputs.items()}


def _scan(inputs: dict[str, Tensor], delta_softplus: bool = True) -> tuple[Tensor, Tensor]:
    return selective_scan(**inputs, delta_softplus=delta_softplus)


def _oracle(inputs: dict[str, Tensor], delta_softplus: bool = True) -> tuple[Tensor, Tensor]:
    with use_kernels("reference"):
        return _scan(inputs, delta_softplus)


def _compare_gradients(inputs: dict[str, Tensor], forward: float, backward: float, softplus: bool = True) -> None:
    exact = _double(inputs)
    for tensors in (inputs, exact):
        for tensor in tensors.values():
            tensor.requires_grad_()
    y, last = _scan(inputs, softplus)
    y64, last64 = _oracle(exact, softplus)
    assert y.dtype == inputs["u"].dtype and last.dtype == torch.float32
    assert_near(y.detach(), y64.detach(), forward, "y")
    assert_near(last.detach(), last64.detach(), forward, "last state")
    dy, dlast = torch.randn_like(y), torch.randn_like(last)
    found = torch.autograd.grad((y, last), list(inputs.values()), (dy, dlast))
    expected = torch.autograd.grad((y64, last64), list(exact.values()), (dy.double(), dlast.double()))
    for name, a, b in zip(inputs, found, expected, strict=True):
        assert a.dtype == inputs[name].dtype
        assert_near(a, b, backward, f"gradient of {name}")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scan_equals_float64_loop(backend: str, size: tuple[int, int, int, int]) -> None:
    _compare_gradients(_inputs(*size), 1e-5, 1e-4)


@pytest.mark.parametrize("fast", ["reference", "cpu"])
def test_scan_of_a_long_clip(fast: str) -> None:
    with use_kernels(fast):
        _compare_gradients(_inputs(2, 150, 20, 4), 1e-5, 1e-4)


@pytest.mark.parametrize("left_out", LEFT_OUT, ids=" ".join)
def test_scan_without_optional_arguments(backend: str, left_out: tuple[str, ...]) -> None:
    inputs = _inputs(2, 2, 37, 16)
    for name in left_out:
        del inputs[name]
    _compare_gradients(inputs, 1e-5, 1e-4)


def test_scan_without_softplus(backend: str) -> None:
    inputs = _inputs(1, 2, 37, 16)
    inputs["delta"] = inputs["delta"].abs()
    inputs["delta_bias"] = inputs["delta_bias"].abs()
    _compare_gradients(inputs, 1e-5, 1e-4, softplus=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_of_half_precision_activations(backend: str, dtype: torch.dtype) -> None:
    """The inputs are exact in the reference, so only the outputs' rounding differs."""
    eps = torch.finfo(dtype).eps
    _compare_gradients(_inputs(1, 2, 37, 16, dtype), eps, 2 * eps)


def test_scan_of_tensors_with_any_strides(backend: str) -> None:
    inputs = _inputs(2, 2, 20, 8)
    expected, expected_last = _scan(inputs)
    for name in ("u", "delta", "z", "B", "C"):
        inputs[name] = inputs[name].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for name in ("A", "initial_state"):
        inputs[name] = inputs[name].transpose(-1, -2).contiguous().transpose(-1, -2)
    found, last = _scan(inputs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(last, expected_last)


def test_scan_with_an_expanded_gradient(backend: str) -> None:
    inputs = {name: value.requires_grad_() for name, value in _inputs(1, 2, 20, 8).items()}
    y, _ = _scan(inputs)
    (found,) = torch.autograd.grad(y.sum(), inputs["delta"], retain_graph=True)
    (expected,) = torch.autograd.grad(y, inputs["delta"], torch.ones_like(y))
    torch.testing.assert_close(found, expected)


def test_scan_extremes(backend: str) -> None:
    """Steps from underflow to overflow of the exponential; the log-domain forms of the scan fail here."""
    inputs = _inputs(1, 2, 99, 16)
    inputs["delta"] = torch.linspace(-60, 60, 2 * 99).view(1, 2, 99)
    inputs["z"] = inputs["z"] * 60
    _compare_gradients(inputs, 1e-5, 1e-4)


@pytest.mark.parametrize("name", ["u", "delta", "z", "B", "C", "initial_state"])
def test_nan_propagates(backend: str, name: str) -> None:
    """Detectron2 stops a training whose loss is not finite: no kernel may turn it finite again."""
    inputs = _inputs(2, 2, 6, 6) if INTERPRETED else _inputs(2, 3, 20, 8)
    inputs[name][1, 1, 5] = float("nan")
    y, _ = _scan(inputs)
    assert y[1].isnan().any() and not y[0].isnan().any()


@torch.no_grad()
def test_scan_in_place(backend: str) -> None:
    inputs = _inputs(3, 1, 37, 16)
    expected, expected_last = _scan(inputs)
    inputs["initial_state"] = inputs["initial_state"].clone()
    y, last = selective_scan(**inputs, delta_softplus=True, inplace=True)
    assert last.data_ptr() == inputs["initial_state"].data_ptr()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(inputs["initial_state"], expected_last)
    # A state that the kernels cannot work on as it lies is still the one that is overwritten.
    strided = _inputs(3, 1, 37, 16)["initial_state"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["initial_state"] = strided.clone()
    _, expected_last = _scan(inputs)
    inputs["initial_state"] = strided
    selective_scan(**inputs, delta_softplus=True, inplace=True)
    torch.testing.assert_close(strided, expected_last)


def test_in_place_is_refused_with_autograd(backend: str) -> None:
    with pytest.raises(RuntimeError, match="no_grad"):
        selective_scan(**_inputs(1, 1, 4, 2), inplace=True)


def test_threads_share_the_work() -> None:
    inputs = _inputs(23, 4, 900, 2)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            tensors = [value.requires_grad_() for value in inputs.values()]
            with use_kernels("cpu"):
                y, _ = _scan(inputs)
            results.append([y, *torch.autograd.grad(y.square().sum(), tensors[:-1])])
    finally:
        torch.set_num_threads(threads)
    for found, expected in zip(*results, strict=True):
        assert_near(found.detach(), expected.detach(), 1e-5)
