# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Triton kernels compile to GPU machine code, without a GPU. Their results are tested in test_scan.py and others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ausm_d2.kernels import choice
from ausm_d2.kernels.attention import attend
from ausm_d2.kernels.attention import triton as attention
from ausm_d2.kernels.choice import use_kernels
from ausm_d2.kernels.conv import causal_conv
from ausm_d2.kernels.conv import triton as conv
from ausm_d2.kernels.deformable import deformable_attention
from ausm_d2.kernels.deformable import triton as deformable
from ausm_d2.kernels.scan import selective_scan
from ausm_d2.kernels.scan import triton as scan

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted, not compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, compile

SCAN = ("scan_forward", "scan_backward")
CONV = ("conv_forward", "conv_backward")
DEFORMABLE = ("deformable_forward", "deformable_backward")
ATTENTION = ("attention_forward", "attention_backward_queries", "attention_backward_keys")

_H100 = GPUTarget("cuda", 90, 32)
_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}


class _Compiler:
    """In place of a kernel: a launch compiles it for the arguments, and that is all."""

    def __init__(self, kernel: Any, compiled: dict[str, CompiledKernel]) -> None:
        self._kernel, self._compiled = kernel, compiled

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *args: Any, **options: Any) -> None:
        names = self._kernel.arg_names
        tensors = dict(zip(names, args, strict=False))
        constants = options | {name: None for name, value in tensors.items() if value is None}
        signature = {name: "constexpr" if name in constants else _type(tensors[name]) for name in names}
        source = ASTSource(self._kernel, signature, constants)
        self._compiled[self._kernel.fn.__name__] = compile(source, target=_H100)


def _type(value: Tensor | float) -> str:
    return _TYPES[value.dtype] if isinstance(value, Tensor) else "i32" if isinstance(value, int) else "fp32"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, CompiledKernel]]:
    """What was compiled, by the name of the kernel; nothing runs, so nothing is compared with the reference."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(choice, "difference", lambda *arguments: None)
    compiled: dict[str, CompiledKernel] = {}
    for module, kernel, names in (
        (scan, scan.TritonScan, SCAN),
        (conv, conv.TritonConv, CONV),
        (deformable, deformable.TritonDeformable, DEFORMABLE),
        (attention, attention.TritonAttention, ATTENTION),
    ):
        compilers = {name: _Compiler(getattr(module.launch.kernels, name), compiled) for name in names}
        monkeypatch.setitem(vars(module.launch), "kernels", SimpleNamespace(**compilers))
        monkeypatch.setattr(kernel, "devices", ("cpu",))
    devices: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: nullcontext(devices.append(x)))
    yield compiled
    choice.forget_checks()
    assert len(devices) == len(compiled)  # a kernel runs where its tensors are, whatever the current device


def _leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("everything", [True, False], ids=["all", "least"])
def test_the_scan(compiled: dict[str, CompiledKernel], everything: bool) -> None:
    n, t, e, s, dtype = 3, 2, 96, 16, torch.bfloat16
    u, delta, z = (_leaf(n, t, e, dtype=dtype) for _ in range(3))
    b, c = (_leaf(n, t, s, dtype=dtype) for _ in range(2))
    more = {"D": _leaf(e), "z": z, "delta_bias": _leaf(e), "initial_state": _leaf(n, e, s)} if everything else {}
    with use_kernels("triton"):
        y, last = selective_scan(u, delta, _leaf(e, s), b, c, delta_softplus=everything, **more)
        (y.float().sum() + last.sum()).backward()
    _check(compiled, SCAN)


@pytest.mark.parametrize("memory", [True, False], ids=["a memory", "none"])
def test_the_convolution(compiled: dict[str, CompiledKernel], memory: bool) -> None:
    initial = _leaf(3, 96, 4, dtype=torch.bfloat16) if memory else None
    with use_kernels("triton"):
        y, last = causal_conv(_leaf(3, 2, 96, dtype=torch.bfloat16), _leaf(96, 4), _leaf(96), initial)
        (y.float().sum() + last.float().sum()).backward()
    _check(compiled, CONV)


def test_deformable_attention(compiled: dict[str, CompiledKernel]) -> None:
    sizes, heads, points = [(2, 3), (4, 6)], 8, 4
    shape = (1, 30, heads)
    inputs = [(*shape, 24), (*shape, len(sizes), points, 2), (*shape, len(sizes), points)]
    with use_kernels("triton"):
        deformable_attention(*(_leaf(*each, dtype=torch.bfloat16) for each in inputs), sizes).sum().backward()
    _check(compiled, DEFORMABLE)


@pytest.mark.parametrize(("width", "dtype"), [(32, torch.bfloat16), (64, torch.float32)])
def test_attention(compiled: dict[str, CompiledKernel], width: int, dtype: torch.dtype) -> None:
    q, k, v = (_leaf(1, 2, n, width, dtype=dtype) for n in (5, 9, 9))
    with use_kernels("triton"):
        attend(q, k, v).sum().backward()
    _check(compiled, ATTENTION)


def _check(compiled: dict[str, CompiledKernel], names: tuple[str, ...]) -> None:
    assert sorted(compiled) == sorted(names)
    for kernel in compiled.values():
        assert kernel.asm["cubin"].startswith(b"\x7fELF")
        assert kernel.metadata.shared <= 48 << 10  # bytes that any GPU gives a program
