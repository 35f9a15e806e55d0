# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The attention layer."""

from __future__ import annotations

import pytest
import torch

from ausm_d2.modeling.attention import Attention


def test_attention_equals_torchs_multi_head_attention() -> None:
    ours, theirs = Attention(24, head_dim=8), torch.nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    mask = torch.rand(2, 1, 5, 7) < 0.7
    mask[..., 0] = True
    expected = theirs(query, key, value, attn_mask=~mask.expand(-1, 3, -1, -1).flatten(0, 1), need_weights=False)[0]
    torch.testing.assert_close(ours(query, key, value, mask=mask), expected)
    torch.testing.assert_close(ours(query, query, query), theirs(query, query, query, need_weights=False)[0])
    with pytest.raises(ValueError, match="head width 7 does not divide the 24 channels"):
        Attention(24, head_dim=7)


def test_a_lookup_attends_to_similar_keys_and_passes_their_values() -> None:
    attention = Attention(24, head_dim=8)
    attention.init_as_lookup(sharpness=3.0)
    keys = torch.randn(1, 6, 24)
    found = attention(keys[:, 2:3], keys, keys)
    torch.testing.assert_close(found, keys[:, 2:3], rtol=0.05, atol=0.2)
