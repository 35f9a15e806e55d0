# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The arguments of a separable block."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.first_use import Probe


class SeparableCall(NamedTuple):
    """Arguments of :func:`ausm_d2.kernels.separable.SEPARABLE`."""

    x: Tensor
    """(BT, C, h, w), best channels last."""
    depthwise: Tensor
    """(C, 1, k, k), k odd."""
    depthwise_bias: Tensor
    """(C,)."""
    weight1: Tensor
    """(C,), of the first norm."""
    bias1: Tensor
    """(C,)."""
    pointwise: Tensor
    """(C, C)."""
    pointwise_bias: Tensor
    """(C,)."""
    weight2: Tensor
    """(C,), of the second norm."""
    bias2: Tensor
    """(C,)."""
    groups1: int
    groups2: int
    eps1: float
    eps2: float

    @property
    def device(self) -> torch.device:
        return self.x.device

    def learns(self) -> bool:
        return torch.is_grad_enabled() and any(each.requires_grad for each in self[:9])

    def form(self) -> Hashable:
        return self.x.dtype, *self.depthwise.shape, *self[9:]

    def probe(self, random: Probe) -> Self:
        channels, side = len(self.depthwise), self.depthwise.shape[-1]
        return self._replace(
            x=random(self.x, 2, channels, 5, 17),
            depthwise=random(self.depthwise, channels, 1, side, side),
            depthwise_bias=random(self.depthwise_bias, channels),
            weight1=random(self.weight1, channels),
            bias1=random(self.bias1, channels),
            pointwise=random(self.pointwise, channels, channels),
            pointwise_bias=random(self.pointwise_bias, channels),
            weight2=random(self.weight2, channels),
            bias2=random(self.bias2, channels),
        )
