# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""timm's inverted residual blocks as one operation."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import freeze_batch_norm_2d
from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn

from ausm_d2.kernels.inverted_residual import BLOCK, cpu
from ausm_d2.modeling.folding import find_pairs, fold_frozen_norms, with_plain_convolutions
from ausm_d2.modeling.inverted_residual import JoinedBlock, join_blocks


def blocks(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module, list[int]]:
    """Two blocks layer by layer, the same joined, and the calls of the joined operation."""
    if (reason := BLOCK.kernels[0].unavailable()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(cpu, "is_faster", lambda: True)  # with AVX-512 it is not, but right all the same
    torch.manual_seed(0)
    common = {"act_layer": nn.ReLU6, "exp_ratio": 2.0}
    net = nn.Sequential(
        InvertedResidual(16, 24, 5, stride=2, pad_type="same", **common), InvertedResidual(24, 24, 3, **common)
    ).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    net = freeze_batch_norm_2d(net)
    joined = copy.deepcopy(net)
    fold_frozen_norms(joined, find_pairs(net, torch.zeros(1, 16, 9, 9)))
    join_blocks(joined)
    calls: list[int] = []
    run = BLOCK.kernels[0].run
    monkeypatch.setattr(BLOCK.kernels[0], "run", lambda call: calls.append(len(call.x)) or run(call))
    return net, joined, calls


def test_joined_blocks_compute_what_their_layers_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    net, joined, calls = blocks(monkeypatch)
    x = torch.randn(3, 16, 13, 18).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        found, wanted = joined(x), net(x)
    assert calls.count(3) == 2 and all(type(each) is JoinedBlock for each in joined)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        joined[1].conv_pwl.weight.mul_(2)
        net[1].conv_pwl.weight.mul_(2)
        torch.testing.assert_close(joined(x), net(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(with_plain_convolutions(joined)(x), net(x), rtol=1e-5, atol=1e-5)


def test_with_gradients_blocks_run_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    net, joined, calls = blocks(monkeypatch)
    x = torch.randn(2, 16, 9, 11)
    gradients = []
    for each in (net, joined):
        each(x).square().sum().backward()
        gradients.append(each[0].conv_pw.weight.grad)
    assert not calls
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))
