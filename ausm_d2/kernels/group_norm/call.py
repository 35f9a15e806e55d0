# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The arguments of a group norm."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.first_use import Probe


class GroupNormCall(NamedTuple):
    """Arguments of :func:`ausm_d2.kernels.group_norm.group_norm`."""

    x: Tensor
    groups: int
    weight: Tensor
    bias: Tensor
    eps: float
    relu: bool
    add: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.x.device

    def learns(self) -> bool:
        tensors = (self.x, self.weight, self.bias, self.add)
        return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)

    def form(self) -> Hashable:
        return self.x.dtype, self.x.shape[1], self.groups, self.eps, self.relu, self.add is None

    def probe(self, random: Probe) -> Self:
        channels = self.x.shape[1]
        x = random(self.x, 2, channels, 9, 17) + 3
        weight, bias = random(self.weight, channels), random(self.bias, channels)
        return self._replace(x=x, weight=weight, bias=bias, add=random(self.add, *x.shape))
