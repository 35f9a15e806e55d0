# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from ausm_d2.modeling.position import sine_position


def test_values_by_hand() -> None:
    """Two rows, three columns, four channels: one frequency in each direction, coordinates in (0, 2 pi]."""
    position = sine_position(2, 3, 4)
    assert position.shape == (4, 2, 3)
    y, x = [math.pi, 2 * math.pi], [2 * math.pi / 3, 4 * math.pi / 3, 2 * math.pi]
    for i in range(2):
        for j in range(3):
            expected = torch.tensor([math.sin(y[i]), math.cos(y[i]), math.sin(x[j]), math.cos(x[j])])
            torch.testing.assert_close(position[:, i, j], expected, atol=1e-5, rtol=0)


def test_equals_mask2former() -> None:
    reference = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    module = reference.Mask2FormerSinePositionEmbedding(num_position_features=16, normalize=True)
    shape = torch.Size([1, 32, 5, 7])
    expected = module(shape, "cpu", torch.float32)[0]
    torch.testing.assert_close(sine_position(5, 7, 32), expected, atol=1e-5, rtol=1e-5)


def test_kept_tensor_made_in_inference_mode_can_be_trained_with() -> None:
    with torch.inference_mode():
        sine_position(3, 9, 8)
    weight = torch.ones(8, 3, 9, requires_grad=True)
    (sine_position(3, 9, 8) * weight).sum().backward()
    assert weight.grad is not None
    assert sine_position(3, 9, 8) is sine_position(3, 9, 8)


def test_odd_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_position(2, 2, 6)
