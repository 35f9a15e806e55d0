# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Copies between the CPU and the model's device."""

from __future__ import annotations

import pytest
import torch

from ausm_d2.modeling.transfer import Download, upload

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_a_round_trip_to_the_device_and_back(device: str) -> None:
    tensors = [torch.randn(3, 5), torch.tensor([True, False]), torch.zeros(0, 4, dtype=torch.int64)]
    there = [upload(tensor, torch.device(device)) for tensor in tensors]
    assert all(tensor.device.type == device for tensor in there)
    for found, expected in zip(Download(*there).wait(), tensors, strict=True):
        assert found.device.type == "cpu" and torch.equal(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_a_started_copy_is_not_affected_by_later_writes(device: str) -> None:
    tensor = torch.zeros(1 << 20, device=device)
    download = Download(tensor + 1)
    tensor.add_(5)
    assert (download.wait()[0] == 1).all()
