# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Attention made of products is the same function as PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ausm_d2.modeling import attention


@pytest.mark.parametrize("scores", [1 << 20, 100])
@pytest.mark.parametrize("masked", ["no", "bool", "of every query", "float"])
def test_bfloat16_on_a_cpu_equals_float32(scores: int, masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SCORES", scores)  # all queries at once, and one at a time
    q, k, v = (torch.randn(2, 3, length, 8).bfloat16() for length in (7, 11, 11))
    mask = {
        "no": None,
        "bool": torch.rand(2, 1, 1, 11) > 0.3,
        "of every query": torch.rand(2, 1, 7, 11) > 0.3,
        "float": torch.randn(2, 3, 7, 11),
    }[masked]
    if mask is not None and mask.dtype == torch.bool:
        mask[..., 0] = True
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, scale=0.5)
    with torch.no_grad():
        found = attention.attend(q, k, v, mask=mask if masked != "float" else mask.bfloat16(), scale=0.5)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.02 * expected.norm()
    with_gradients = attention.attend(q.requires_grad_(), k, v, mask=mask if masked != "float" else mask.bfloat16())
    assert with_gradients.requires_grad
