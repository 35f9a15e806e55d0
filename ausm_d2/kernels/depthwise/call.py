# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The arguments of a depthwise convolution."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.cpp_kernel import convolved_size
from ausm_d2.kernels.first_use import Probe


class DepthwiseCall(NamedTuple):
    """Arguments of :func:`ausm_d2.kernels.depthwise.depthwise_conv`."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    stride: int
    padding: tuple[int, int, int, int]
    low: float
    high: float

    @property
    def device(self) -> torch.device:
        return self.x.device

    def learns(self) -> bool:
        return torch.is_grad_enabled() and any(each.requires_grad for each in self[:3])

    def output_size(self) -> tuple[int, int]:
        """(h', w')."""
        return convolved_size(self.x, len(self.weight), self.stride, self.padding)

    def form(self) -> Hashable:
        return self.x.dtype, *self.weight.shape, *self[3:]

    def probe(self, random: Probe) -> Self:
        channels = self.x.shape[1]
        shape = (channels, 2 * len(self.weight) + 3, 2 * len(self.weight) + 10)
        return self._replace(
            x=random(self.x, 2, *shape),
            weight=random(self.weight, *self.weight.shape),
            bias=random(self.bias, channels),
        )
