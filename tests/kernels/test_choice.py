# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The choice of kernels, and its messages."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from ausm_d2.kernels import choice, cpp
from ausm_d2.kernels.choice import OPERATIONS, KernelLayer, decided, set_kernels, use_kernels
from ausm_d2.kernels.conv import CONV
from ausm_d2.kernels.scan import SCAN, selective_scan
from ausm_d2.modeling.ssm import Mamba
from tests.kernels.fakes import SquareCall, SquareKernel, squares
from tests.tiny import tiny_model


@pytest.fixture(autouse=True)
def _nothing_is_checked_yet() -> Iterator[None]:
    choice.forget_checks()
    yield
    choice.forget_checks()


def call(*, learns: bool = False) -> SquareCall:
    return SquareCall(torch.arange(7.0, requires_grad=learns))


def test_auto_takes_the_first_available_kernel_that_fits() -> None:
    first, second, third = SquareKernel(), SquareKernel(name="triton"), SquareKernel(name="mamba_ssm")
    first.devices = ("cuda",)
    second.fits = lambda call: False  # type: ignore[method-assign]
    operation = squares(first, second, third)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operation(call())
    assert (first.calls, second.calls) == ([], []) and third.calls[-1] == 7


def test_auto_says_once_why_it_runs_the_reference() -> None:
    kernel = SquareKernel()
    kernel.reason = "no compiler"
    with pytest.warns(UserWarning, match="kernels for cpu are not used.*reference is: cpu: no compiler") as said:
        for _ in range(3):
            assert torch.equal(squares(kernel)(call())[0], torch.arange(7.0).square())
    assert len(said) == 1 and not kernel.calls


def test_without_a_compiler_the_scan_is_the_reference_and_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    inputs = [torch.randn(2, 3, 8), torch.randn(2, 3, 8), -torch.rand(8, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 4)]
    with use_kernels("reference"):
        expected = selective_scan(*inputs)[0]
    for cache in (cpp.library, cpp.why_not):
        cache.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"scan\.cpp: no C\+\+ compiler") as said:
            found = [selective_scan(*inputs)[0] for _ in range(2)]
    finally:
        for cache in (cpp.library, cpp.why_not):
            cache.cache_clear()
    assert len(said) == 1 and all(torch.equal(each, expected) for each in found)


def test_an_unavailable_kernel_requested_by_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = SquareKernel(name="mamba_ssm")
    kernel.reason = "mamba_ssm is not installed"
    operation = squares(SquareKernel(), kernel)
    with pytest.raises(
        UserError, match=r"MODEL\.AUSM\.KERNELS: 'mamba_ssm' cannot run here: mamba_ssm is not installed"
    ):
        operation(call(), "mamba_ssm")
    monkeypatch.setenv("AUSM_KERNELS", "mamba_ssm")
    with pytest.raises(UserError, match="AUSM_KERNELS: 'mamba_ssm' cannot run here"):
        operation(call())
    kernel.reason, kernel.devices = None, ("cuda",)
    with pytest.raises(UserError, match="it has kernels for cuda, the tensors of square are on cpu"):
        operation(call())


def test_calls_that_the_named_kernel_does_not_support_use_auto() -> None:
    fast, named = SquareKernel(), SquareKernel(name="triton")
    named.fits = lambda call: False  # type: ignore[method-assign]
    squares(fast, named)(call(), "triton")
    assert fast.calls[-1] == 7 and not named.calls
    squares(fast)(call(), "mamba_ssm")  # the operation has no such kernel at all
    assert len(fast.calls) == 3  # the first use of each, and both


def test_the_environment_overrides_the_model_and_use_kernels_both(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided() == ("auto", "MODEL.AUSM.KERNELS") and decided("triton")[0] == "triton"
    monkeypatch.setenv("AUSM_KERNELS", "reference")
    assert decided("triton") == ("reference", "AUSM_KERNELS")
    with use_kernels("cpu"):
        assert decided("triton")[0] == "cpu"
    monkeypatch.setenv("AUSM_KERNELS", "")
    assert decided("triton")[0] == "triton"


@pytest.mark.parametrize("where", ["AUSM_KERNELS", "use_kernels", "MODEL.AUSM.KERNELS"])
def test_an_unknown_name_is_refused(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "AUSM_KERNELS":
        monkeypatch.setenv(where, "abacus")
    model_choice = "abacus" if where == "MODEL.AUSM.KERNELS" else "auto"
    expected = f"{where}: found 'abacus', expected one of auto, reference, cpu, triton, mamba_ssm"
    with use_kernels("abacus" if where == "use_kernels" else None), pytest.raises(UserError, match=expected):
        squares(SquareKernel())(call(), model_choice)


def test_a_models_choice_reaches_all_its_layers() -> None:
    model = tiny_model("MODEL.AUSM.KERNELS", "reference", "MODEL.AUSM.FRAME_ENCODER.ENC_LAYERS", 1)
    layers = [module for module in model.modules() if isinstance(module, KernelLayer)]
    names = {"Mamba", "Attention", "FeedForward", "FFNLayer", "MSDeformAttn", "MultiScaleDecoder"}
    assert {type(each).__name__ for each in layers} == names
    assert {each.kernels for each in layers} == {"reference"}
    assert {each.kernels for each in tiny_model().modules() if isinstance(each, KernelLayer)} == {"auto"}


def test_layers_run_what_their_model_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(choice.Operation, "choose", lambda self, call, kernels: names.append(kernels) or self.reference)
    layer = nn.Sequential(Mamba(8))
    set_kernels(layer, "reference")
    layer(torch.randn(2, 3, 8))
    assert names == ["reference", "reference"]


def test_the_config_names_a_kernel() -> None:
    with pytest.raises(UserError, match=r"MODEL\.AUSM\.KERNELS: 'abacus' is not one of auto, reference, cpu, triton"):
        tiny_model("MODEL.AUSM.KERNELS", "abacus")
    assert load_config("configs/synth/ausm_nano.yaml").MODEL.AUSM.KERNELS == "auto"


def test_a_model_whose_kernels_cannot_run_is_refused_when_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for operation in OPERATIONS:
        for kernel in operation.kernels:
            monkeypatch.setattr(kernel, "unavailable", lambda: "it is not installed")
    for name in ("cpu", "triton", "mamba_ssm"):
        with pytest.raises(UserError, match=f"'{name}' cannot run here: it is not installed"):
            set_kernels(nn.Identity(), name)
    set_kernels(nn.Identity(), "auto")


def test_on_cuda_auto_prefers_mamba_ssm_to_triton() -> None:
    """mamba_ssm's kernels have run on GPUs, this project's have not."""
    for operation in (SCAN, CONV):
        assert [kernel.name for kernel in operation.kernels if "cuda" in kernel.devices] == ["mamba_ssm", "triton"]
