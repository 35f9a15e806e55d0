# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The arguments of a deformable attention call."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.first_use import Probe


class DeformableCall(NamedTuple):
    """Arguments of :func:`ausm_d2.kernels.deformable.deformable_attention`."""

    values: Tensor
    offsets: Tensor
    logits: Tensor
    sizes: tuple[tuple[int, int], ...]

    @property
    def device(self) -> torch.device:
        return self.values.device

    def learns(self) -> bool:
        return torch.is_grad_enabled() and any(each.requires_grad for each in self[:3])

    def form(self) -> Hashable:
        """Dtypes, levels, points and channels."""
        return *(each.dtype for each in self[:3]), *self.logits.shape[3:], self.values.shape[3]

    def probe(self, random: Probe) -> Self:
        levels, points = self.logits.shape[3:]
        sizes = tuple((2 + level, 3 + level) for level in range(levels))
        shape = (1, sum(height * width for height, width in sizes), 2)
        return self._replace(
            values=random(self.values, *shape, self.values.shape[3]),
            # Multiples of 1/8 plus 5/64: away from pixel centres, where the left and right derivatives differ.
            offsets=random(self.offsets, *shape, levels, points, 2).mul(8).round().clamp(-15, 15) / 8 + 5 / 64,
            logits=random(self.logits, *shape, levels, points),
            sizes=sizes,
        )
