# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from ausm_d2.modeling.pixel_decoder import PixelDecoder, Predictions, mask_confidence, memory_levels


@pytest.mark.parametrize("size", [(8, 12), (7, 5)])
def test_without_the_earlier_predictions_the_last_is_the_same(size: tuple[int, int]) -> None:
    decoder = PixelDecoder(
        32, num_layers=4, head_dim=16, dim_feedforward=32, num_levels=3, num_det=9, label_sets={"a": 3}
    ).eval()  # fmt: skip
    batch, rows = 2, 4
    g, mask_features = torch.randn(batch, 32, *size), torch.randn(batch, 32, 2 * size[0], 2 * size[1])
    memory = memory_levels(g, (32, 16, 8))
    in_use = torch.tensor([[True, True, False, True], [False] * 4])
    arguments = memory, mask_features, torch.randn(batch, rows, 32), in_use, ["a", "a"]
    every = decoder(*arguments)
    (last,) = decoder(*arguments, intermediate=False)
    assert len(every) == 5
    torch.testing.assert_close(last.class_logits, every[-1].class_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last.mask_logits, every[-1].mask_logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(every[0].mask_logits, every[-1].mask_logits, atol=0.1)


def test_the_confidence_of_a_proposal_counts_its_objectness() -> None:
    logits = torch.full((1, 3, 2, 2), -5.0)
    logits[0, :2, 0] = 2.0
    found = Predictions(torch.zeros(1, 3, 2), logits)
    inside = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(mask_confidence(found)[:, 0], torch.stack([inside, inside, inside * 0]))
    proposed = found._replace(objectness=torch.tensor([[0.25, 0.5]]))  # of the last two rows
    torch.testing.assert_close(mask_confidence(proposed)[:, 0], torch.stack([inside, inside / 2, inside * 0]))
