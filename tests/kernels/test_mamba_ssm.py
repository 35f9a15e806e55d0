# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The kernels of mamba_ssm and causal_conv1d are called with what they expect, and give what the reference gives.

Stand-ins take their places (stand_ins.py): the packages' kernels need a GPU. tests/modeling/test_ssm.py calls
mamba_ssm's own reference functions where its source is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ausm_d2.errors import UserError
from ausm_d2.kernels import choice, installed
from ausm_d2.kernels.choice import use_kernels
from ausm_d2.kernels.conv import CONV, causal_conv
from ausm_d2.kernels.conv.call import ConvCall
from ausm_d2.kernels.conv.mamba_ssm import MambaSsmConv
from ausm_d2.kernels.scan import SCAN, selective_scan
from ausm_d2.kernels.scan.call import ScanCall
from ausm_d2.kernels.scan.mamba_ssm import MambaSsmScan
from ausm_d2.modeling.ssm import Mamba
from tests.kernels import stand_ins
from tests.kernels.oracle import assert_near

HALF = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _stand_ins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    choice.forget_checks()
    if "installed" not in request.node.name:
        stand_ins.install(monkeypatch)
    yield
    choice.forget_checks()


def scan_inputs(dtype: torch.dtype = torch.float32, *, frames: int = 5, state: bool = False) -> dict[str, Tensor]:
    """Strided as in the layer."""
    n, e, s = 3, 40, 16
    inputs = {
        "u": torch.randn(n, frames, 2 * e).to(dtype)[..., :e],
        "delta": torch.randn(n, frames, e).to(dtype),
        "A": -torch.rand(e, s) * 4 - 0.01,
        "B": torch.randn(n, frames, 2 * s + 3).to(dtype)[..., 3 : 3 + s],
        "C": torch.randn(n, frames, 2 * s + 3).to(dtype)[..., 3 + s :],
        "D": torch.randn(e),
        "z": torch.randn(n, frames, 2 * e).to(dtype)[..., e:],
        "delta_bias": torch.randn(e),
    }
    return inputs | ({"initial_state": torch.randn(n, e, s)} if state else {})


def conv_inputs(dtype: torch.dtype = torch.float32, *, frames: int = 5, state: bool = False) -> dict[str, Tensor]:
    n, e, k = 3, 40, 4
    inputs = {
        "x": torch.randn(n, frames, 2 * e).to(dtype)[..., e:],
        "weight": torch.randn(e, k),
        "bias": torch.randn(e),
    }
    return inputs | ({"initial": torch.randn(n, e, k).to(dtype)} if state else {})


def compare(operation: Any, inputs: dict[str, Tensor], dtype: torch.dtype, **options: Any) -> None:
    """Results and gradients, those through the last state too, beside the reference in float64."""
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    exact = {name: each.detach().double().requires_grad_() for name, each in inputs.items()}
    for each in inputs.values():
        each.requires_grad_()
    with use_kernels("mamba_ssm"):
        found = operation(**inputs, **options)
    with use_kernels("reference"):
        wanted = operation(**exact, **options)
    weights = [torch.randn(each.shape).to(each.dtype) for each in found]
    for a, b in zip(found, wanted, strict=True):
        assert_near(a.detach(), b.detach(), tolerance)
    gradients = torch.autograd.grad(found, list(inputs.values()), weights)
    expected = torch.autograd.grad(wanted, list(exact.values()), [each.double() for each in weights])
    for name, a, b in zip(inputs, gradients, expected, strict=True):
        assert_near(a, b, 10 * tolerance, name)


@pytest.fixture
def only_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other kernel may be used."""

    def refuse(self: Any, call: Any) -> Any:
        raise AssertionError("auto was asked")

    monkeypatch.setattr(choice.Operation, "_auto", refuse)


@pytest.mark.usefixtures("only_theirs")
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("left_out", ["nothing", "D", "z", "delta_bias"])
def test_a_clip_from_the_zero_state(left_out: str, dtype: torch.dtype) -> None:
    inputs = {name: each for name, each in scan_inputs(dtype).items() if name != left_out}
    compare(selective_scan, inputs, dtype, delta_softplus=True)


@pytest.mark.usefixtures("only_theirs")
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("state", [True, False], ids=["a state", "none"])
@pytest.mark.parametrize("frames", [1, 2, 6])
def test_a_clip_of_the_convolution(frames: int, state: bool, dtype: torch.dtype) -> None:
    compare(causal_conv, conv_inputs(dtype, frames=frames, state=state), dtype)


@torch.no_grad()
@pytest.mark.usefixtures("only_theirs")
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("dtype", HALF)
def test_further_frames_in_inference(dtype: torch.dtype, frames: int, inplace: bool) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    for operation, made, name, options in (
        (selective_scan, scan_inputs, "initial_state", {"delta_softplus": True}),
        (causal_conv, conv_inputs, "initial", {}),
    ):
        inputs = made(dtype, frames=frames, state=True)
        before = inputs[name].clone()
        with use_kernels("reference"):
            wanted = operation(**{key: each.double() for key, each in inputs.items()}, **options)
        with use_kernels("mamba_ssm"):
            found = operation(**inputs, **options, inplace=inplace)
        for a, b in zip(found, wanted, strict=True):
            assert_near(a, b, tolerance)
        assert (found[1] is inputs[name]) == inplace and torch.equal(inputs[name], before) != inplace


@torch.no_grad()
def test_a_state_with_any_strides_is_overwritten_in_place() -> None:
    inputs = scan_inputs(frames=1, state=True)
    strided = inputs["initial_state"].mT.contiguous().mT
    with use_kernels("mamba_ssm"):
        _, wanted = selective_scan(**inputs)
        selective_scan(**inputs | {"initial_state": strided}, inplace=True)
    assert torch.equal(strided, wanted)


def test_operations_without_a_mamba_ssm_kernel_use_other_kernels() -> None:
    """From a state with gradients; and where their kernels do not fit."""
    scan, conv = MambaSsmScan(), MambaSsmConv()

    def takes_scan(**changes: Any) -> bool:
        values = dict.fromkeys(ScanCall._fields) | scan_inputs() | {"delta_softplus": True, "inplace": False}
        return scan.fits(ScanCall(**values | changes))  # type: ignore[arg-type]

    def takes_conv(x: Tensor, width: int = 4) -> bool:
        return conv.fits(ConvCall(x, torch.zeros(x.shape[2], width), torch.zeros(x.shape[2]), None, False))

    state = torch.zeros(3, 40, 16)
    assert takes_scan() and takes_scan(initial=state)
    assert not takes_scan(initial=state.clone().requires_grad_())
    assert not takes_scan(u=torch.zeros(3, 5, 40, dtype=torch.float64)) and not takes_scan(A=-torch.ones(40, 257))
    meta = {"device": "meta"}
    assert not takes_scan(u=torch.zeros(2**14, 2**11, 64, **meta)) and not takes_scan(u=torch.zeros(0, 5, 40))
    many = torch.zeros(65536, 1, 8, **meta)
    assert takes_scan(u=many) and not takes_scan(u=many, initial=state)
    assert takes_conv(torch.zeros(3, 5, 40)) and not takes_conv(torch.zeros(3, 5, 42))
    assert not takes_conv(torch.zeros(3, 5, 40), 5) and not takes_conv(torch.zeros(3, 5, 40).double())
    compare(selective_scan, scan_inputs(state=True), torch.float32)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_mamba_layer_trains_on_them_frame_by_frame_and_all_at_once(checkpointing: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    layer, x = Mamba(24), torch.randn(3, 4, 24)
    layer.kernels = "mamba_ssm"

    def run(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        y, after = layer(x, type(after_none)(*state) if state else None)
        return y, *after

    after_none = layer.init_state(1)
    gradients = []
    for whole in (True, False):
        layer.zero_grad()
        y, state = [], ()
        for part in [x] if whole else x.split(1, dim=1):
            out = checkpoint(run, part, *state, use_reentrant=False) if checkpointing else run(part, *state)
            y.append(out[0])
            state = out[1:]
        torch.cat(y, dim=1).square().sum().backward()
        gradients.append([each.grad.clone() for each in layer.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_near(a, b, 1e-4)


def test_auto_takes_them_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for operation in (SCAN, CONV):
        monkeypatch.setattr(operation, "kernels", tuple(each for each in operation.kernels if each.name == "mamba_ssm"))
    calls = []
    for kernel in (MambaSsmScan, MambaSsmConv):
        run = kernel.run
        monkeypatch.setattr(kernel, "run", lambda self, call, run=run: calls.append(self) or run(self, call))
    Mamba(24)(torch.randn(3, 4, 24))
    assert {type(each) for each in calls} == {MambaSsmScan, MambaSsmConv}


def test_a_broken_package_is_named_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual fault: it was built for another PyTorch."""
    import sys

    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", None)
    kernels = tuple(each for each in SCAN.kernels if each.name == "mamba_ssm")
    monkeypatch.setattr(SCAN, "kernels", kernels)
    inputs = scan_inputs()
    with use_kernels("reference"):
        wanted = selective_scan(**inputs)
    with pytest.warns(UserWarning, match="mamba_ssm's selective scan raised ModuleNotFoundError") as said:
        for _ in range(2):
            found = selective_scan(**inputs)
    assert len(said) == 1 and torch.equal(found[0], wanted[0])


def test_a_package_that_is_not_installed_is_named() -> None:
    assert installed.missing.__wrapped__("no_such_package", "x") == "no_such_package is not installed"
    assert installed.missing.__wrapped__("torch", "no_such_kernels") == (
        "torch was installed without its CUDA kernels (no_such_kernels)"
    )
    with use_kernels("mamba_ssm"), pytest.raises(UserError, match="use_kernels: 'mamba_ssm' cannot run here"):
        selective_scan(**scan_inputs())
