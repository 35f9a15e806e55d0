# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Wrong kernels are found at their first use, without side effects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from ausm_d2 import kernels
from ausm_d2.errors import UserError
from ausm_d2.kernels import choice
from ausm_d2.kernels.attention import ATTENTION, attend
from ausm_d2.kernels.attention.call import AttentionCall
from ausm_d2.kernels.attention.cpu import CpuAttention
from ausm_d2.kernels.choice import OPERATIONS, use_kernels
from ausm_d2.kernels.conv import CONV, causal_conv
from ausm_d2.kernels.conv.call import ConvCall
from ausm_d2.kernels.conv.cpu import CpuConv
from ausm_d2.kernels.deformable import DEFORMABLE, deformable_attention
from ausm_d2.kernels.deformable.call import DeformableCall
from ausm_d2.kernels.deformable.cpu import CpuDeformable
from ausm_d2.kernels.depthwise import depthwise_conv
from ausm_d2.kernels.depthwise.cpu import CpuDepthwise
from ausm_d2.kernels.group_norm import group_norm
from ausm_d2.kernels.group_norm.cpu import CpuGroupNorm
from ausm_d2.kernels.inverted_residual import BLOCK
from ausm_d2.kernels.scan import SCAN, selective_scan
from ausm_d2.kernels.scan.call import ScanCall
from ausm_d2.kernels.scan.cpu import CpuScan
from ausm_d2.kernels.winograd import conv3x3
from ausm_d2.kernels.winograd.cpu import CpuWinograd
from tests.kernels import fakes
from tests.kernels.fakes import SquareCall, SquareKernel, squares
from tests.kernels.interpreter import GPU, RUNS_TRITON


@pytest.fixture(autouse=True)
def _nothing_is_checked_yet() -> Iterator[None]:
    choice.forget_checks()
    yield
    choice.forget_checks()


def numbers(*, learns: bool = False) -> Tensor:
    return torch.arange(1.0, 8.0, requires_grad=learns)


WRONG = {
    "result 1 by 1.0e-02": fakes.lies,
    r"raised ImportError: undefined symbol: _ZN3c10;": fakes.raises,
    r"result 1 is \(4,\), not \(5,\)": fakes.forgets_a_number,
    "result 1 by nan": fakes.gives_nan,
    "x, afterwards, by": fakes.overwrites_its_input,
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_kernel_is_named_once_and_the_reference_used(message: str) -> None:
    kernel = SquareKernel(WRONG[message])
    with pytest.warns(UserWarning, match=f"cpu's square .*{message}") as said:
        for learns in (False, True, False):
            y = squares(kernel)(SquareCall(numbers(learns=learns)))[0]
            assert torch.equal(y.detach(), numbers().square())
    assert len(said) == 1 and kernel.calls == [5]  # the small input, once; never the caller's


def test_a_wrong_gradient_is_found_where_gradients_are_used() -> None:
    kernel = SquareKernel(fakes.lies_about_the_gradient)
    operation = squares(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(operation(SquareCall(numbers()))[0], numbers().square())
    assert kernel.calls == [5, 7]
    x = numbers(learns=True)
    with pytest.warns(UserWarning, match="the gradient of x by 5.0e-01"):
        operation(SquareCall(x))[0].sum().backward()
    assert torch.equal(x.grad, 2 * numbers())
    operation(SquareCall(numbers()))
    assert kernel.calls == [5, 7, 5]  # it is not trusted with anything any more


def test_a_state_that_is_not_overwritten_is_found() -> None:
    state = torch.ones(7)
    with pytest.warns(UserWarning, match="state, afterwards, by"):
        squares(SquareKernel(fakes.leaves_the_state))(SquareCall(numbers(), state))
    assert torch.equal(state, numbers().square() + 1)


def test_after_a_wrong_kernel_the_next_is_tried_before_the_reference() -> None:
    wrong, right = SquareKernel(fakes.raises), SquareKernel(name="triton")
    with pytest.warns(UserWarning, match="cpu's square raised ImportError") as said:
        y = squares(wrong, right)(SquareCall(numbers()))[0]
    assert right.calls == [5, 7] and torch.equal(y, numbers().square()) and len(said) == 1


def test_a_wrong_kernel_requested_by_name_is_an_error() -> None:
    operation = squares(SquareKernel(fakes.lies))
    for _ in range(2):
        with pytest.raises(UserError, match=r"MODEL\.AUSM\.KERNELS: cpu's square differs from the reference: result 1"):
            operation(SquareCall(numbers()), "cpu")


def test_a_kernel_is_compared_once_for_every_form_of_call() -> None:
    kernel = SquareKernel()
    operation = squares(kernel)
    for x in (numbers(), numbers(), numbers(learns=True), numbers().half(), numbers(learns=True), numbers().half()):
        operation(SquareCall(x))
    assert kernel.calls == [5, 7, 7, 5, 7, 5, 7, 7, 7]


def test_half_precision_may_round() -> None:
    def rounds(call: SquareCall) -> tuple[Tensor]:
        return ((call.x.float() * call.x.float() * (1 + 2**-8)).to(call.x.dtype),)

    kernel = SquareKernel(rounds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        squares(kernel)(SquareCall(numbers().bfloat16()))
    with pytest.warns(UserWarning, match="result 1 by 3.9e-03"):
        squares(SquareKernel(rounds))(SquareCall(numbers()))


def test_the_comparison_has_no_side_effects() -> None:
    """Random numbers, autograd's mode, autocast and its cache, inference mode, and hooks of saved tensors."""
    saved: list[Tensor] = []
    kernel = SquareKernel(lambda call: (call.x @ torch.eye(len(call.x)) * call.x,))
    state = torch.random.get_rng_state()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):  # noqa: SIM117
        with torch.autocast("cpu", torch.bfloat16):
            y = squares(kernel)(SquareCall(numbers(learns=True)))[0]
            assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    expected = len(saved)
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):  # noqa: SIM117
        with torch.autocast("cpu", torch.bfloat16):
            kernel.function(SquareCall(numbers(learns=True)))
    assert len(saved) == expected and y.grad_fn is not None
    with torch.no_grad():
        squares(SquareKernel())(SquareCall(numbers(), torch.zeros(7)))
        assert not torch.is_grad_enabled()
    choice.forget_checks()
    with torch.inference_mode():
        y = squares(kernel := SquareKernel())(SquareCall(numbers()))[0]
        assert torch.is_inference_mode_enabled() and y.is_inference() and kernel.calls == [5, 7]
    assert torch.is_grad_enabled() and torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_first_use_may_be_inside_a_checkpoint(reentrant: bool) -> None:
    kernel = SquareKernel()
    operation = squares(kernel)
    x = numbers(learns=True)
    y = checkpoint(lambda x: operation(SquareCall(x))[0].sin(), x, use_reentrant=reentrant)
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * numbers() * numbers().square().cos())
    assert kernel.calls == ([5, 7, 5, 7] if reentrant else [5, 7, 7])


def test_dispatch_modes_do_not_see_the_comparison() -> None:
    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    kernel = SquareKernel()
    call = SquareCall(numbers())
    with Counter():
        squares(kernel)(call)
    assert kernel.calls == [5, 7] and seen == ["aten.mul.Tensor"]


def test_pytorchs_default_dtype_does_not_affect_the_comparison() -> None:
    kernel = SquareKernel()
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("error")
            squares(kernel)(SquareCall(torch.ones(7, dtype=torch.float32, device="cpu")))
    finally:
        torch.set_default_dtype(dtype)
    assert kernel.calls == [5, 7]


def test_a_first_use_while_a_graph_is_captured_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = SquareKernel()
    operation = squares(kernel)
    monkeypatch.setattr(choice, "is_capturing", lambda device: True)
    with pytest.warns(UserWarning, match="during CUDA graph capture") as said:
        for _ in range(2):
            operation(SquareCall(numbers()))
    assert not kernel.calls and len(said) == 1
    monkeypatch.undo()
    operation(SquareCall(numbers()))  # and later it is compared, and used
    monkeypatch.setattr(choice, "is_capturing", lambda device: True)
    operation(SquareCall(numbers()))
    assert kernel.calls == [5, 7, 7]


def test_tensors_without_values_are_not_compared() -> None:
    kernel = SquareKernel()
    operation = squares(kernel)
    with FakeTensorMode():
        operation(SquareCall(torch.ones(7)))
    assert kernel.calls == [7]
    operation(SquareCall(numbers()))
    assert kernel.calls == [7, 5, 7]


def _calls(dtype: torch.dtype) -> dict[type, Callable[[], Any]]:
    """Of all kernels that this machine may have."""
    n, t, e, s = 4, 5, 300, 16
    u, z = torch.randn(2, n, t, e).to(dtype)
    B, C = torch.randn(2, n, t, s).to(dtype)
    delta, A, more = torch.rand(n, t, e).to(dtype), -torch.rand(e, s), torch.randn(2, e)
    weight, state = torch.randn(e, 4), torch.randn(n, e, 4).to(dtype)
    sizes = [(3, 4), (6, 8), (12, 16)]
    values = torch.randn(1, 252, 2, 8).to(dtype)
    places = torch.randn(1, 252, 2, 3, 4, 2).to(dtype), torch.randn(1, 252, 2, 3, 4).to(dtype)
    q, k, v = torch.randn(3, 1, 2, 140, 32).to(dtype)

    def scan(learn: bool) -> Any:
        return selective_scan(u.clone().requires_grad_(learn), delta, A, B, C, more[0], z, more[1], True)

    @torch.no_grad()
    def step() -> Any:
        first = [x[:, :1] for x in (u, delta)]
        rest = [x[:, :1] for x in (B, C)]
        scanned = selective_scan(*first, A, *rest, initial_state=torch.randn(n, e, s), inplace=True)
        return scanned, causal_conv(u[:, :1], weight, more[0], state.clone(), inplace=True)

    @torch.no_grad()
    def inference() -> Any:
        return attend(q, k, v), deformable_attention(values, *places, sizes)

    x = torch.randn(1, 96, 16, 96).to(dtype).contiguous(memory_format=torch.channels_last)
    dense = torch.randn(96, 96, 3, 3).to(dtype)

    @torch.no_grad()
    def convolutions() -> Any:
        weight, bias = dense[:, 0].permute(1, 2, 0), dense[:, 0, 0, 0]
        return (
            depthwise_conv(x, weight, bias, stride=1, padding=(1, 1, 1, 1)),
            group_norm(x, 32, bias, dense[:, 0, 0, 1], 1e-5),
        )

    return {
        CpuScan: lambda: (scan(True), scan(False), step()),
        CpuConv: lambda: (causal_conv(u.clone().requires_grad_(), weight, more[0], state), step()),
        CpuDeformable: inference,
        CpuAttention: inference,
        CpuDepthwise: convolutions,
        CpuGroupNorm: convolutions,
        CpuWinograd: lambda: (conv3x3(x.clone().requires_grad_(), dense), conv3x3(x, dense)),
    }


ALONE = [CpuScan, CpuConv, CpuDeformable, CpuDepthwise, CpuGroupNorm, CpuWinograd]  # of their inputs
FLOAT32_ONLY = [CpuDepthwise, CpuGroupNorm, CpuWinograd]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [*ALONE, CpuAttention], ids=lambda kernel: kernel.__name__)
def test_the_kernels_of_this_machine_are_right(
    kernel: type, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By less than a tenth (half precision: half) of what is allowed: the comparison does not fail by chance."""
    if kernel().unavailable() is not None:
        pytest.skip("no C++ compiler")
    from ausm_d2.kernels import first_use

    tolerance = first_use._tolerance
    monkeypatch.setattr(first_use, "_tolerance", lambda call: tolerance(call) / (10 if dtype == torch.float32 else 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _calls(dtype)[kernel]()
    assert not choice._problems and bool(choice._agreed) == (dtype == torch.float32 or kernel not in FLOAT32_ONLY)


@pytest.mark.parametrize("kernel", ALONE, ids=lambda kernel: kernel.__name__)
def test_an_error_in_a_real_kernel_is_found(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel().unavailable() is not None:
        pytest.skip("no C++ compiler")
    truth = kernel.run

    def lie(self: Any, call: Any) -> tuple[Tensor, ...]:
        first, *others = truth(self, call)
        return first + 0.1, *others

    call = _calls(torch.float32)[kernel]
    torch.manual_seed(1)
    with use_kernels("reference"):
        expected = call()
    monkeypatch.setattr(kernel, "run", lie)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match=r"cpu's .* differs from the reference: result 1 .*not used") as said:
        found = call()
    assert len([each for each in said if "differs from the reference" in str(each.message)]) == 1
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # the reference was used
    monkeypatch.setenv("AUSM_KERNELS", "cpu")
    with pytest.raises(UserError, match=r"AUSM_KERNELS: cpu's .* differs from the reference"):
        call()


def _small_calls() -> dict[str, Any]:
    """With gradients; a comparison at first use makes its own inputs of the same form."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda" if GPU else "cpu", requires_grad=True)

    u, delta, z, B, C = random(1, 2, 3), random(1, 2, 3), random(1, 2, 3), random(1, 2, 2), random(1, 2, 2)
    state = random(1, 3, 2)
    return {
        "scan": (SCAN, ScanCall(u, delta, random(3, 2), B, C, random(3), z, random(3), state, True, False)),
        "conv": (CONV, ConvCall(u, random(3, 4), random(3), random(1, 3, 4), False)),
        "deformable": (
            DEFORMABLE,
            DeformableCall(random(1, 1, 1, 4), random(1, 1, 1, 1, 1, 2), random(1, 1, 1, 1, 1), ((1, 1),)),
        ),
        "attention": (ATTENTION, AttentionCall(*(random(1, 1, 1, 5) for _ in range(3)), None)),
    }


@pytest.mark.skipif(not RUNS_TRITON, reason="see test_interpreter.py")
@pytest.mark.parametrize("name", ["scan", "conv", "deformable", "attention"])
def test_triton_agrees_with_the_reference_at_its_first_use(name: str) -> None:
    operation, call = _small_calls()[name]
    (kernel,) = (each for each in operation.kernels if each.name == "triton")
    assert operation._problem(kernel, call) is None and len(choice._agreed) == 1


def test_every_operation_is_compared_with_its_reference() -> None:
    """The reference agrees with itself on the small inputs, with gradients where a kernel has them."""
    folders = {path.parent.name for path in Path(kernels.__file__).parent.glob("*/call.py")}
    assert {ATTENTION, BLOCK} <= set(OPERATIONS) and len(OPERATIONS) == len(folders) == 10
    assert all(f"({name}/)" in kernels.__doc__ for name in folders), "the table of kernels has every operation"
    with use_kernels("reference"):
        for run in _calls(torch.float32).values():
            run()
    assert not choice._agreed and not choice._problems
