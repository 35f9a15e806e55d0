# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The arguments of a linear layer."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.first_use import Probe


class LinearCall(NamedTuple):
    """Arguments of :func:`ausm_d2.kernels.linear.linear`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    low: float
    high: float

    @property
    def device(self) -> torch.device:
        return self.x.device

    def learns(self) -> bool:
        return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in self[:3])

    def form(self) -> Hashable:
        return self.x.dtype, self.weight.dtype, self.bias is None, self.low, self.high

    def probe(self, random: Probe) -> Self:
        return self._replace(
            x=random(self.x, 2, 67, 40), weight=random(self.weight, 75, 40), bias=random(self.bias, 75)
        )
