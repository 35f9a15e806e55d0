# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The arguments of a causal convolution call.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; K: width of the convolution.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.first_use import Probe
from ausm_d2.kernels.layout import few


class ConvCall(NamedTuple):
    """Arguments of :func:`ausm_d2.kernels.conv.causal_conv`."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    initial: Tensor | None
    inplace: bool

    @property
    def device(self) -> torch.device:
        return self.x.device

    def learns(self) -> bool:
        return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in self)

    def form(self) -> Hashable:
        """Dtypes, one frame or several, E, K and ``inplace``."""
        tensors = (None if each is None else each.dtype for each in self[:4])
        return (*tensors, self.x.shape[1] == 1, *self.weight.shape, self.inplace)

    def probe(self, random: Probe) -> Self:
        n, t, e, k = 3, min(self.x.shape[1], 3), few(self.x.shape[2]), self.weight.shape[1]
        return self._replace(
            x=random(self.x, n, t, e),
            weight=random(self.weight, e, k),
            bias=random(self.bias, e),
            initial=random(self.initial, n, e, k),
        )
