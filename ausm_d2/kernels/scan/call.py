# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The arguments of a selective scan call.

Shape shorthand: N: sequences (pixels); T: frames; E: inner channels; S: state size.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ausm_d2.kernels.first_use import Probe
from ausm_d2.kernels.layout import few


class ScanCall(NamedTuple):
    """Arguments of :func:`ausm_d2.kernels.scan.selective_scan`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial: Tensor | None
    delta_softplus: bool
    inplace: bool

    @property
    def device(self) -> torch.device:
        return self.u.device

    def learns(self) -> bool:
        return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in self)

    def form(self) -> Hashable:
        """Dtypes, one frame or several, E, S and the flags."""
        tensors = (None if each is None else each.dtype for each in self[:9])
        return (*tensors, self.u.shape[1] == 1, *self.A.shape, self.delta_softplus, self.inplace)

    def probe(self, random: Probe) -> Self:
        n, t, e, s = 3, min(self.u.shape[1], 3), few(self.u.shape[2]), self.A.shape[1]
        delta, bias = random(self.delta, n, t, e), random(self.delta_bias, e)
        if not self.delta_softplus:  # negative step sizes make the state diverge
            delta, bias = delta.abs(), None if bias is None else bias.abs()
        return self._replace(
            u=random(self.u, n, t, e),
            delta=delta,
            A=-random(self.A, e, s).abs() - 0.01,
            B=random(self.B, n, t, s),
            C=random(self.C, n, t, s),
            D=random(self.D, e),
            z=random(self.z, n, t, e),
            delta_bias=bias,
            initial=random(self.initial, n, e, s),
        )
