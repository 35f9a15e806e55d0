# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The attention kernels against ``scaled_dot_product_attention`` in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels import choice, cpp
from ausm_d2.kernels.attention import ATTENTION, attend, cpu, triton
from ausm_d2.kernels.attention.call import AttentionCall
from ausm_d2.kernels.choice import use_kernels
from tests.kernels.interpreter import GPU, RUNS_TRITON
from tests.kernels.oracle import assert_near


def _heads(batch: int, heads: int, tokens: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """As linear layers give them: heads are not first in memory."""
    return torch.randn(batch, tokens, heads * width).to(dtype).unflatten(-1, (heads, width)).transpose(1, 2)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def only_the_kernel(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(cpu, "MIN_QUERIES", dict.fromkeys(cpu.MIN_QUERIES, 1))
    kernel = ATTENTION.kernels[0]
    call = AttentionCall(*(_heads(1, 1, 2, 64, dtype) for _ in range(3)), None)
    if kernel.unavailable() is not None or not kernel.fits(call):
        pytest.skip("the kernel cannot be compiled here, or is not used for this dtype on this processor")
    monkeypatch.setattr(choice, "difference", lambda *arguments: None)  # asks PyTorch's own

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("PyTorch's own was called")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)


_EXACT = F.scaled_dot_product_attention


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    found, expected = attend(q, k, v), _EXACT(q.double(), k.double(), v.double())
    assert found.dtype == q.dtype and found.shape == expected.shape
    # A weight and a result of bfloat16 have 8 bits: twice 2^-9 of a value of about 1.
    exact = q.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5 if exact else 1e-2, atol=2e-6 if exact else 8e-3)


@pytest.mark.usefixtures("only_the_kernel")
@pytest.mark.parametrize("queries", [1, 6, 49])
@pytest.mark.parametrize("keys", [1, 63, 65, 513, 1100])
def test_any_number_of_queries_and_keys(queries: int, keys: int, dtype: torch.dtype) -> None:
    torch.manual_seed(queries * keys)
    _check(_heads(2, 3, queries, 32, dtype), _heads(2, 3, keys, 32, dtype), _heads(2, 3, keys, 32, dtype))


@pytest.mark.usefixtures("only_the_kernel")
@pytest.mark.parametrize("width", [16, 48, 64, 112])
def test_any_head_dimension(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    _check(*(_heads(1, 2, 40, width, dtype) for _ in range(3)))


@pytest.mark.usefixtures("only_the_kernel")
def test_any_memory_layout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    packed = torch.randn(2, 50, 3, 2, 32).to(dtype)
    _check(*packed.permute(2, 0, 3, 1, 4))
    _check(torch.randn(2, 2, 32, 50).to(dtype).transpose(-1, -2), *packed.permute(2, 0, 3, 1, 4)[1:])
    _check(_heads(1, 2, 39, 32, dtype).expand(2, -1, -1, -1), *packed.permute(2, 0, 3, 1, 4)[1:])


@pytest.mark.usefixtures("only_the_kernel")
def test_scores_of_any_magnitude(dtype: torch.dtype) -> None:
    """Their exponentials overflow; the highest come in late blocks of keys."""
    torch.manual_seed(0)
    q, k, v = (_heads(1, 1, n, 16, dtype) for n in (33, 1500, 1500))
    _check(50 * q, k * torch.linspace(0.1, 50, 1500).to(dtype)[:, None], v)


@pytest.mark.usefixtures("only_the_kernel")
def test_nan_propagates(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (_heads(1, 1, 70, 32, dtype) for _ in range(3))
    q[0, 0, 3, 5] = float("nan")
    found = attend(q, k, v)
    assert found[0, 0, 3].isnan().all()
    assert found[0, 0, :3].isfinite().all() and found[0, 0, 4:].isfinite().all()
    v[0, 0, 69, 2] = float("nan")
    assert attend(q, k, v)[0, 0, :, 2].isnan().all()


@pytest.mark.usefixtures("only_the_kernel")
def test_keys_with_zero_weight(dtype: torch.dtype) -> None:
    """The scores of a whole block of keys, and more, are infinitely low."""
    torch.manual_seed(0)
    q, k, v = (_heads(1, 2, n, 32, dtype) for n in (40, 900, 900))
    q, k = q.abs(), k.abs()
    k[:, :, :600] = float("-inf")
    found = attend(q, k, v)
    expected = _EXACT(q.double(), k[:, :, 600:].double(), v[:, :, 600:].double())
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=1e-2)


def test_a_cpu_with_shorter_vector_registers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("for processors with AVX2")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(cpp, "_FLAGS", tuple(flag.replace("native", "haswell") for flag in cpp._FLAGS))
    try:
        library = cpp.load_library(cpu.SOURCE)
    except cpp.CompileError as error:
        pytest.skip(str(error))
    assert library.ausm_attention_fits(24, 0) and not library.ausm_attention_fits(24, 1)
    torch.manual_seed(0)
    q, k, v = _heads(2, 3, 50, 24), _heads(2, 3, 700, 24), _heads(2, 3, 700, 24)
    torch.testing.assert_close(cpu.attend_on_cpu(library, q, k, v), _EXACT(q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("only_the_kernel")
def test_threads_share_the_work(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (_heads(2, 3, 130, 32, dtype) for _ in range(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = attend(q, k, v)
        torch.set_num_threads(3)
        assert torch.equal(attend(q, k, v), alone)
    finally:
        torch.set_num_threads(before)


def test_unsupported_inputs_use_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients or a mask, in other types and shapes, without keys, and without a compiler."""
    monkeypatch.setattr(cpu, "MIN_QUERIES", dict.fromkeys(cpu.MIN_QUERIES, 4))
    torch.manual_seed(0)
    q, k, v = (_heads(1, 2, 40, 16) for _ in range(3))
    mask = torch.rand(1, 1, 40, 40) > 0.5
    mask |= torch.eye(40, dtype=torch.bool)
    torch.testing.assert_close(attend(q, k, v, mask=mask), _EXACT(q, k, v, attn_mask=mask))
    torch.testing.assert_close(attend(q.double(), k.double(), v.double()), _EXACT(q.double(), k.double(), v.double()))
    odd = [each[..., :7] for each in (q, k, v)]
    torch.testing.assert_close(attend(*odd), _EXACT(*odd))
    assert attend(q, k[:, :, :0], v[:, :, :0]).shape == q.shape
    for some in ([q[:, :, :3], k, v], [q.expand(3, -1, -1, -1), k, v], [q, k, v[..., :8]]):
        torch.testing.assert_close(attend(*some), _EXACT(*some))
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(q, k, v).dtype == torch.bfloat16
    with torch.enable_grad():
        q.requires_grad_()
        attend(q, k, v).sum().backward()
    assert q.grad is not None
    with use_kernels("reference"):
        torch.testing.assert_close(attend(q, k, v), _EXACT(q, k, v))


needs_triton = pytest.mark.skipif(not RUNS_TRITON, reason="see test_interpreter.py")
DEVICE = "cuda" if GPU else "cpu"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Triton's kernels, as they are launched; the tests compare by themselves."""
    names: list[str] = []
    launch = triton.launch

    def noted(kernel: str, *arguments: Any, **options: Any) -> None:
        names.append(kernel)
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(triton, "launch", noted)
    monkeypatch.setattr(choice, "difference", lambda *arguments: None)
    return names


@needs_triton
@pytest.mark.parametrize("precision", [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])], ids=str)
def test_triton_equals_float64_with_gradients(precision: torch.dtype, launched: list[str]) -> None:
    """Two blocks of queries and of keys, the last of them not full."""
    q, k, v = (_heads(1, 2, n, 20, precision).to(DEVICE) for n in (70, 40, 40))
    with torch.enable_grad():
        tensors, exact = (
            [each.to(dtype).requires_grad_() for each in (q, k, v)] for dtype in (precision, torch.double)
        )
        with use_kernels("triton"):
            found = attend(*tensors)
        expected = _EXACT(*exact)
        weight = torch.randn_like(expected)
        gradients = torch.autograd.grad((found * weight.to(precision)).sum(), tensors)
        wanted = torch.autograd.grad((expected * weight.to(precision).double()).sum(), exact)
    assert launched == ["attention_forward", "attention_backward_queries", "attention_backward_keys"]
    assert found.dtype == precision
    tolerance = 1e-5 if precision == torch.float32 else 4 * torch.finfo(precision).eps
    for one, other in zip((found, *gradients), (expected, *wanted), strict=True):
        assert_near(one.detach(), other.detach(), tolerance)


@needs_triton
def test_triton_takes_scores_far_apart_and_no_numbers(launched: list[str]) -> None:
    q, k, v = (_heads(1, 1, n, 16).to(DEVICE) for n in (3, 70, 70))
    q, k = 50 * q.abs(), k.abs() * torch.linspace(0.1, 50, 70, device=DEVICE)[:, None]
    k[:, :, :40] = float("-inf")  # all of the first block, and more
    expected = _EXACT(q.double(), k[:, :, 40:].double(), v[:, :, 40:].double())
    with use_kernels("triton"):
        found = attend(q, k, v)
        q[0, 0, 1, 5] = float("nan")
        broken = attend(q, k, v)
    assert_near(found, expected, 1e-5)
    assert broken[0, 0, 1].isnan().all() and torch.equal(broken[0, 0, ::2], found[0, 0, ::2])
    assert launched == 2 * ["attention_forward"]


@needs_triton
def test_triton_leaves_the_rest_to_pytorch(launched: list[str]) -> None:
    q, k, v = (_heads(1, 2, 4, 16).to(DEVICE) for _ in range(3))
    mask = torch.eye(4, dtype=torch.bool, device=DEVICE)
    with use_kernels("triton"):
        torch.testing.assert_close(attend(q, k, v, mask=mask), _EXACT(q, k, v, attn_mask=mask))
        assert attend(q, k[:, :, :0], v[:, :, :0]).shape == q.shape
        torch.testing.assert_close(attend(q.double(), k.double(), v.double()).float(), _EXACT(q, k, v))
    attend(q, k, v)  # it is not chosen of itself
    assert launched == []
