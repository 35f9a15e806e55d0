# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from ausm_d2.modeling.folding import FoldedConv2d, find_pairs, fold_frozen_norms, with_plain_convolutions

NETS = ["tf_efficientnet_lite0", "mobilenetv3_small_050", "resnet18"]  # ReLU6 and TensorFlow's padding; HardSwish; ReLU


def nets(name: str) -> tuple[nn.Module, nn.Module]:
    """A pyramid with norms that do something, and the same one folded."""
    torch.manual_seed(0)
    plain = freeze_batch_norm_2d(timm.create_model(name, features_only=True)).eval()
    for key, value in plain.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif key.endswith("running_mean"):
            value.normal_(std=0.3)
    folded = copy.deepcopy(plain)
    fold_frozen_norms(folded, find_pairs(folded, torch.zeros(1, 3, 64, 64)))
    return plain, folded.to(memory_format=torch.channels_last)


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5 * float(b.abs().max()))


@pytest.mark.parametrize("name", NETS)
def test_a_folded_net_computes_what_it_did_under_the_same_names(name: str) -> None:
    plain, folded = nets(name)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        close(folded(images.contiguous(memory_format=torch.channels_last)), plain(images))
    assert list(folded.state_dict()) == list(plain.state_dict())
    assert sum(isinstance(module, FoldedConv2d) for module in folded.modules()) >= 20


@pytest.mark.parametrize("name", NETS[:1])
def test_gradients_of_trained_convolutions_pass_through_the_fold(name: str) -> None:
    plain, folded = nets(name)
    images = torch.randn(2, 3, 64, 64)
    for net in (plain, folded):
        sum(out.square().mean() for out in net(images)).backward()  # type: ignore[union-attr]
    pairs = zip(folded.parameters(), plain.parameters(), strict=True)
    close(*map(list, zip(*((a.grad, b.grad) for a, b in pairs), strict=True)))


def test_cached_weights_follow_the_weights_and_norms() -> None:
    plain, folded = nets(NETS[0])
    images, other = torch.randn(1, 3, 64, 64), copy.deepcopy(plain.state_dict())
    for key, value in other.items():
        value.mul_(1.1 if key.endswith("weight") else 0.9)
    with torch.no_grad():
        folded(images)
        for net in (plain, folded):
            net.load_state_dict(other)
        close(folded(images), plain(images))
        for net in (plain, folded):
            for parameter in net.parameters():
                parameter.mul_(0.95)
        close(folded(images), plain(images))
        close(copy.deepcopy(folded)(images), plain(images))
    with torch.inference_mode():
        close(folded(images), plain(images))


def test_trained_weights_are_folded_anew_although_nothing_was_recorded_before() -> None:
    _, folded = nets(NETS[0])
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        folded(images)
    folded(images)[0].sum().backward()
    assert next(folded.parameters()).grad is not None


class Shared(nn.Module):
    """The result of the first convolution also bypasses the norm; that of the second does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x + self.norm1(x)
        return self.norm2(self.conv2(x))


def test_a_convolution_that_others_read_too_is_left_alone() -> None:
    with torch.device("meta"):
        assert find_pairs(Shared(), torch.zeros(1, 3, 8, 8)) == {"conv2": "norm2"}


def test_norms_that_are_trained_are_left_alone() -> None:
    net = Shared()
    fold_frozen_norms(net, {"conv2": "norm2"})
    assert type(net.conv2) is nn.Conv2d


@pytest.mark.parametrize("name", NETS)
def test_a_copy_with_plain_convolutions_computes_the_same_without_norms(name: str) -> None:
    plain, folded = nets(name)
    copied, images = with_plain_convolutions(folded), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        close(copied(images), plain(images))
    names = {type(module).__name__ for module in copied.modules()}
    assert not {name for name in names if "Folded" in name or "BatchNorm" in name}
    assert any(isinstance(module, FoldedConv2d) for module in folded.modules())
