# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The arguments of a 3 x 3 convolution."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.first_use import Probe


class Conv3x3Call(NamedTuple):
    """Arguments of :func:`ausm_d2.kernels.winograd.conv3x3`."""

    x: Tensor
    weight: Tensor

    @property
    def device(self) -> torch.device:
        return self.x.device

    def learns(self) -> bool:
        return torch.is_grad_enabled() and (self.x.requires_grad or self.weight.requires_grad)

    def form(self) -> Hashable:
        return self.x.dtype, self.weight.dtype

    def probe(self, random: Probe) -> Self:
        return self._replace(x=random(self.x, 2, 32, 6, 13), weight=random(self.weight, 48, 32, 3, 3))
