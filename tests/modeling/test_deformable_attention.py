# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The C++ of inference against ``grid_sample``, which is what runs under autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ausm_d2.modeling import deformable_attention
from ausm_d2.modeling.cpp import library_or_none
from ausm_d2.modeling.deformable_attention import MSDeformAttn

SIZES = {"one level": [(5, 3)], "three": [(2, 3), (4, 6), (7, 11)], "one pixel": [(1, 1), (1, 2)]}


def layer_and_input(
    sizes: list[tuple[int, int]], spread: float = 0.3, sharpness: float = 0.3
) -> tuple[MSDeformAttn, Tensor, Tensor]:
    layer = MSDeformAttn(24, num_levels=len(sizes), num_heads=3, num_points=2)
    nn.init.normal_(layer.sampling_offsets.weight, std=spread)
    nn.init.normal_(layer.attention_weights.weight, std=sharpness)
    pixels = sum(height * width for height, width in sizes)
    return layer, torch.randn(2, pixels, 24), torch.randn(2, pixels, 24)


@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])  # of the offsets: inside, over the border, mostly outside
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_inference_equals_grid_sample(sizes: list[tuple[int, int]], spread: float) -> None:
    if library_or_none(deformable_attention._SOURCE) is None:
        pytest.skip("no C++ compiler")
    layer, query, value = layer_and_input(sizes, spread)
    expected = layer(query, value, sizes)
    with torch.no_grad():
        torch.testing.assert_close(layer(query, value, sizes), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(layer(query + 1, value, sizes), expected, atol=1e-3)


def test_weights_far_apart() -> None:
    """The exponentials of their logits overflow."""
    sizes = SIZES["three"]
    layer, query, value = layer_and_input(sizes, sharpness=100.0)
    assert layer.attention_weights(query).max() > 500
    expected = layer(query, value, sizes)
    with torch.no_grad():
        torch.testing.assert_close(layer(query, value, sizes), expected, rtol=1e-4, atol=1e-4)


def test_what_is_no_number_stays_that() -> None:
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


def test_without_a_compiler_or_in_float64_grid_sample_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = SIZES["three"]
    layer, query, value = layer_and_input(sizes)
    expected = layer(query, value, sizes)
    with torch.no_grad():
        exact = layer.double()(query.double(), value.double(), sizes)
        torch.testing.assert_close(exact.float(), expected, rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(deformable_attention, "library_or_none", lambda source: None)
        assert torch.equal(layer.float()(query, value, sizes), expected)
