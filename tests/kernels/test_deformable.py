# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The C++ kernel for inference and the Triton kernel against ``grid_sample``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ausm_d2.kernels import choice
from ausm_d2.kernels.choice import use_kernels
from ausm_d2.kernels.deformable import DEFORMABLE, deformable_attention
from ausm_d2.kernels.deformable import triton as deformable_triton
from ausm_d2.modeling.deformable_attention import MSDeformAttn
from tests.kernels.interpreter import GPU, INTERPRETED, RUNS_TRITON

SIZES = {"one level": [(5, 3)], "three": [(2, 3), (4, 6), (7, 11)], "one pixel": [(1, 1), (1, 2)]}
SMALL = [(1, 1), (2, 3)]  # for Triton's interpreter


needs_triton = pytest.mark.skipif(not RUNS_TRITON, reason="see test_interpreter.py")
DEVICE = "cuda" if GPU else "cpu"


@pytest.fixture(autouse=INTERPRETED)
def _compared_by_the_tests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_first_use.py has the comparison at first use."""
    monkeypatch.setattr(choice, "difference", lambda *arguments: None)


def layer_and_input(
    sizes: list[tuple[int, int]], spread: float = 0.3, sharpness: float = 0.3, heads: int = 3
) -> tuple[MSDeformAttn, Tensor, Tensor]:
    layer = MSDeformAttn(24, num_levels=len(sizes), num_heads=heads, num_points=2)
    nn.init.normal_(layer.sampling_offsets.weight, std=spread)
    nn.init.normal_(layer.attention_weights.weight, std=sharpness)
    pixels = sum(height * width for height, width in sizes)
    return layer, torch.randn(2, pixels, 24), torch.randn(2, pixels, 24)


@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])  # of the offsets: inside, over the border, mostly outside
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_inference_equals_grid_sample(sizes: list[tuple[int, int]], spread: float) -> None:
    if (reason := DEFORMABLE.kernels[0].unavailable()) is not None:
        pytest.skip(reason)
    layer, query, value = layer_and_input(sizes, spread)
    expected = layer(query, value, sizes)
    with torch.no_grad():
        torch.testing.assert_close(layer(query, value, sizes), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(layer(query + 1, value, sizes), expected, atol=1e-3)


def test_attention_weights_of_any_magnitude() -> None:
    """The exponentials of their logits overflow."""
    sizes = SIZES["three"]
    layer, query, value = layer_and_input(sizes, sharpness=100.0)
    assert layer.attention_weights(query).max() > 500
    expected = layer(query, value, sizes)
    with torch.no_grad():
        torch.testing.assert_close(layer(query, value, sizes), expected, rtol=1e-4, atol=1e-4)


def test_nan_propagates() -> None:
    sizes = SIZES["three"]
    layer, query, value = layer_and_input(sizes)
    query[1, 5] = float("nan")
    with torch.no_grad():
        found = layer(query, value, sizes)
    assert found[1, 5].isnan().all() and found[0].isfinite().all()
    assert found[1, :5].isfinite().all() and found[1, 6:].isfinite().all()


def test_autocast_samples_in_full_precision() -> None:
    sizes = SIZES["three"]
    layer, query, value = layer_and_input(sizes)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(query, value, sizes)
        with torch.no_grad():
            out = layer(query, value, sizes)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)


def test_threads_share_the_queries() -> None:
    sizes = [(16, 16), (8, 8)]
    layer, query, value = layer_and_input(sizes)
    threads = torch.get_num_threads()
    with torch.no_grad():
        try:
            torch.set_num_threads(1)
            alone = layer(query, value, sizes)
            torch.set_num_threads(4)
            together = layer(query, value, sizes)
        finally:
            torch.set_num_threads(threads)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_float64_uses_grid_sample() -> None:
    sizes = SIZES["three"]
    layer, query, value = layer_and_input(sizes)
    expected = layer(query, value, sizes)
    with torch.no_grad():
        exact = layer.double()(query.double(), value.double(), sizes)
        torch.testing.assert_close(exact.float(), expected, rtol=1e-4, atol=1e-5)
        with use_kernels("reference"):
            assert torch.equal(layer.float()(query, value, sizes), expected)


def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels, as they are launched."""
    names: list[str] = []
    launch = deformable_triton.launch

    def noted(kernel: str, *arguments: Any, **options: Any) -> None:
        names.append(kernel)
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(deformable_triton, "launch", noted)
    return names


@needs_triton
def test_triton_equals_grid_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = SMALL
    layer, *inputs = layer_and_input(sizes, heads=2)  # samples inside, over the border and outside
    layer, inputs = layer.to(DEVICE), [each.to(DEVICE).requires_grad_() for each in inputs]
    leaves = [*inputs, *layer.parameters()]
    outputs, weight = [], torch.randn(inputs[0].shape, device=DEVICE)
    launched = launches(monkeypatch)
    for name in ("triton", "reference"):
        with use_kernels(name):
            out = layer(*inputs, sizes)
        outputs.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    assert launched == ["deformable_forward", "deformable_backward"]
    for found, expected in zip(*outputs, strict=True):
        scale = float(expected.detach().abs().max()) + 1e-6
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


@needs_triton
def test_triton_takes_weights_far_apart_and_no_numbers() -> None:
    sizes = SMALL
    layer, query, value = (each.to(DEVICE) for each in layer_and_input(sizes, sharpness=100.0, heads=2))
    query = query.clone()
    query[1, 5] = float("nan")
    with use_kernels("triton"):
        found = layer(query, value, sizes)
    others = torch.ones(query.shape[:2], dtype=torch.bool)
    others[1, 5] = False
    assert found[1, 5].isnan().all()
    query[1, 5] = 0.0
    with use_kernels("reference"):
        torch.testing.assert_close(found[others], layer(query, value, sizes)[others], rtol=1e-4, atol=1e-4)


def test_the_sizes_are_those_of_the_tensors() -> None:
    values, offsets, logits = (torch.zeros(1, 30, 2, *rest) for rest in ((8,), (2, 2, 2), (2, 2)))
    deformable_attention(values, offsets, logits, [(2, 3), (4, 6)])
    for sizes in ([(2, 3), (5, 6)], [(5, 6)], [(5, 3), (5, 3), (0, 1)]):
        with pytest.raises(ValueError, match="do not match 30 pixels on 2 levels"):
            deformable_attention(values, offsets, logits, sizes)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, *([torch.bfloat16] if GPU else [])], ids=str)
def test_triton_rounds_nothing_but_its_results(dtype: torch.dtype) -> None:
    sizes = [(1, 2), (2, 3)]
    shapes = [(1, 8, 1, 8), (1, 8, 1, 2, 2, 2), (1, 8, 1, 2, 2)]
    inputs = [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]
    exact = [each.detach().float().requires_grad_() for each in inputs]
    with use_kernels("triton"):
        outputs = [deformable_attention(*each, sizes) for each in (inputs, exact)]
    assert outputs[0].dtype == dtype
    weight = torch.randn_like(outputs[0])
    found = [outputs[0], *torch.autograd.grad((outputs[0] * weight).sum(), inputs)]
    wanted = [outputs[1], *torch.autograd.grad((outputs[1] * weight.float()).sum(), exact)]
    eps = torch.finfo(dtype).eps
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=eps, atol=1e-6)
