# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The C++ kernels of linear layers and inverted residual blocks, against PyTorch in float64; weights packed once."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm_d2.kernels.inverted_residual import BLOCK
from ausm_d2.kernels.inverted_residual.call import BlockCall
from ausm_d2.kernels.linear import LINEAR, linear
from ausm_d2.kernels.linear import cpu as linear_cpu
from ausm_d2.kernels.linear.call import LinearCall
from ausm_d2.kernels.packed import PackedWeights
from tests.kernels.test_convolutions import close

INFINITY = math.inf


@pytest.fixture(autouse=True)
def _compiled() -> None:
    for operation in (LINEAR, BLOCK):
        if (reason := operation.kernels[0].unavailable()) is not None:
            pytest.skip(reason)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("limits", [(-INFINITY, INFINITY), (0.0, INFINITY), (-0.5, 2.0)])
@pytest.mark.parametrize("shape", [(67, 40, 75), (6, 1, 1), (5, 300, 22), (1000, 96, 24)])
@torch.no_grad()
def test_linear(shape: tuple[int, int, int], limits: tuple[float, float], bias: bool) -> None:
    rows, inputs, outputs = shape
    call = LinearCall(
        torch.randn(2, rows, inputs),
        torch.randn(outputs, inputs) / inputs**0.5,
        torch.randn(outputs) if bias else None,
        *limits,
    )
    wide = call._replace(x=call.x.double(), weight=call.weight.double(), bias=call.bias.double() if bias else None)
    close(LINEAR.kernels[0].run(call)[0], LINEAR.reference(wide)[0])


@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_rows_of_a_larger_tensor_by_several_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight = torch.randn(300, 64)[:, :48], torch.randn(96, 48) / 7
    close(
        LINEAR.kernels[0].run(LinearCall(x, weight, None, -1.0, 1.0))[0], (x.double() @ weight.double().T).clamp(-1, 1)
    )


@torch.no_grad()
def test_products_of_several_groups_with_their_own_weights() -> None:
    x, weight = torch.randn(3, 70, 16), torch.randn(3, 24, 16)
    close(linear_cpu.multiply(x, linear_cpu.pack(weight), 24), x.double() @ weight.double().transpose(1, 2))


def test_linear_is_left_to_pytorch_with_gradients_few_rows_or_another_dtype() -> None:
    kernel = LINEAR.kernels[0]
    x, weight = torch.randn(600, 32), nn.Parameter(torch.randn(16, 32))
    with torch.no_grad():
        assert kernel.fits(LinearCall(x, weight, None, 0.0, 1.0)) == linear_cpu.is_faster()
        assert not kernel.fits(LinearCall(x[:10], weight, None, 0.0, 1.0))
        assert not kernel.fits(LinearCall(x.double(), weight.double(), None, 0.0, 1.0))
    assert not kernel.fits(LinearCall(x, weight, None, 0.0, 1.0))
    y = linear(x, weight, low=0.0)
    y.sum().backward()
    wanted = torch.autograd.grad(F.relu(F.linear(x, weight)).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, wanted)


@torch.no_grad()
def test_packed_weights_follow_every_change_of_the_weights() -> None:
    packed: list[Tensor] = []

    def pack(weight: Tensor) -> Tensor:
        packed.append(weight)
        return weight.clone()

    weights, parameter = PackedWeights(pack), nn.Parameter(torch.zeros(4, 3))
    for _ in range(2):  # views are new objects in every call
        assert not weights(parameter[:2]).any() and not weights(parameter[2:]).any()
    assert len(packed) == 2
    parameter[0, 0] = 5.0
    assert weights(parameter[:2])[0, 0] == 5 and len(packed) == 3
    parameter.data = torch.ones(4, 3)
    assert weights(parameter[:2]).sum() == 6 and len(packed) == 4
    with torch.inference_mode():
        assert weights(parameter[:2]).sum() == 6 and len(packed) == 4
        assert weights(torch.ones(2, 2)).sum() == 4 and len(packed) == 5
    del parameter
    packed.clear()
    gc.collect()
    assert not len(weights._kept)


def block(c: int, e: int, n: int, k: int, stride: int, size: tuple[int, int], pads: tuple[int, ...]) -> BlockCall:
    return BlockCall(
        torch.randn(2, c, *size),
        torch.randn(e, c) / c**0.5,
        torch.randn(e),
        torch.randn(k, k, e) / k,
        torch.randn(e),
        torch.randn(n, e) / e**0.5,
        torch.randn(n),
        stride,
        pads,  # type: ignore[arg-type]
        0.0,
        6.0,
        c == n and stride == 1,
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "sizes",
    [
        (16, 96, 24, 3, 2, (12, 20), (0, 1, 0, 1)),
        (24, 144, 24, 3, 1, (9, 70), (1, 1, 1, 1)),  # several bands of rows
        (8, 48, 8, 5, 1, (2, 3), (2, 2, 2, 2)),  # a kernel larger than the image
        (16, 2000, 12, 5, 2, (11, 40), (1, 2, 2, 1)),  # one row of outputs in a band
        (16, 48, 16, 3, 1, (6, 7), (4, 4, 4, 4)),  # outputs of padding alone
    ],
)
@torch.no_grad()
def test_inverted_residual_block(sizes: tuple[Any, ...], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    call = block(*sizes)._replace(sums=False) if sizes[-1] == (4, 4, 4, 4) else block(*sizes)
    wide = call._replace(**{n: each.double() for n, each in call._asdict().items() if isinstance(each, Tensor)})
    found = BLOCK.kernels[0].run(call)[0]
    close(found, BLOCK.reference(wide)[0], 5e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
