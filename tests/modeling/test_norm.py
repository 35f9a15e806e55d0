# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Norms and resizing: equal to PyTorch's in float32, and in half precision where that is intended."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ausm_d2.modeling.norm import GroupNorm, LayerNorm
from ausm_d2.modeling.resize import resize_to

NORMS = [(LayerNorm(12), nn.LayerNorm(12), (2, 5, 12)), (GroupNorm(3, 12), nn.GroupNorm(3, 12), (2, 12, 5, 4))]


@pytest.mark.parametrize(("mine", "pytorchs", "shape"), NORMS, ids=["layer", "group"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_norms(mine: nn.Module, pytorchs: nn.Module, shape: tuple[int, ...], half: torch.dtype) -> None:
    for norm in (mine.float(), pytorchs):
        nn.init.normal_(norm.weight, 1.0)
        nn.init.normal_(norm.bias)
    pytorchs.load_state_dict(mine.state_dict())
    x = torch.randn(shape) * 3 + 50  # sums that half precision would lose
    expected = pytorchs(x)
    assert torch.equal(mine(x), expected)
    mine.to(half)
    with torch.autocast("cpu", torch.bfloat16):
        found = mine(x.to(half))
        assert found.dtype == mine(x).dtype == half
    torch.testing.assert_close(found.float(), pytorchs(x.to(half).float()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resizing_keeps_the_type(dtype: torch.dtype) -> None:
    x, like = torch.randn(1, 3, 4, 5).to(dtype), torch.zeros(1, 7, 8, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found = resize_to(x, like)
    assert found.dtype == dtype and found.shape == (1, 3, 8, 9)
    assert torch.equal(found, F.interpolate(x, (8, 9), mode="bilinear", align_corners=False))
