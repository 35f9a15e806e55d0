# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The arguments of an attention call."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.first_use import Probe


class AttentionCall(NamedTuple):
    """Arguments of :func:`ausm_d2.kernels.attention.attend`."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None

    @property
    def device(self) -> torch.device:
        return self.q.device

    def learns(self) -> bool:
        return torch.is_grad_enabled() and any(each.requires_grad for each in self[:3])

    def form(self) -> Hashable:
        return self.q.dtype, self.q.shape[3], self.mask is None

    def probe(self, random: Probe) -> Self:
        """Without a mask: no kernel supports one."""
        heads, width = 2, self.q.shape[3]
        q, k, v = (random(self.q, 1, heads, n, width) for n in (26, 70, 70))
        return self._replace(q=q, k=k, v=v, mask=None)
