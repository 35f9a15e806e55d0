# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The arguments of an inverted residual block."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.cpp_kernel import convolved_size
from ausm_d2.kernels.first_use import Probe


class BlockCall(NamedTuple):
    """Arguments of :func:`ausm_d2.kernels.inverted_residual.BLOCK`."""

    x: Tensor
    """(BT, C, H, W)."""
    expand: Tensor
    """(E, C)."""
    expand_bias: Tensor
    """(E,)."""
    depthwise: Tensor
    """(k, k, E)."""
    depthwise_bias: Tensor
    """(E,)."""
    project: Tensor
    """(N, E)."""
    project_bias: Tensor
    """(N,)."""
    stride: int
    padding: tuple[int, int, int, int]
    """Zeros at the left, right, top and bottom of the expanded channels."""
    low: float
    high: float
    """Limits of the activation after expansion and depthwise convolution."""
    sums: bool
    """Whether the input is added to the output."""

    @property
    def device(self) -> torch.device:
        return self.x.device

    def learns(self) -> bool:
        return torch.is_grad_enabled() and any(each.requires_grad for each in self[:7])

    def output_size(self) -> tuple[int, int]:
        """(P, Q)."""
        return convolved_size(self.x, len(self.depthwise), self.stride, self.padding)

    def form(self) -> Hashable:
        return self.x.dtype, len(self.depthwise), *self[7:]

    def probe(self, random: Probe) -> Self:
        side, channels, expanded = len(self.depthwise), 16, 48
        return self._replace(
            x=random(self.x, 2, channels, 2 * side + 3, 2 * side + 10),
            expand=random(self.expand, expanded, channels),
            expand_bias=random(self.expand_bias, expanded),
            depthwise=random(self.depthwise, side, side, expanded),
            depthwise_bias=random(self.depthwise_bias, expanded),
            project=random(self.project, channels, expanded),
            project_bias=random(self.project_bias, channels),
        )
