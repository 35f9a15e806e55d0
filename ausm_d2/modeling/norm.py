# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""PyTorch's norms, which can be kept in half precision (precision.py).

They compute in float32 whatever they read and write. Autocast on CUDA does not count on that: it has them read a
float32 copy and write float32, and all that is added to it is float32 too, until the next linear layer copies it again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .autocast import outside_autocast


def _in_its_precision(weight: Tensor, x: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    if weight.dtype not in (torch.bfloat16, torch.float16):
        return norm(x)
    with outside_autocast(x):
        return norm(x.to(weight.dtype))


class LayerNorm(nn.LayerNorm):
    """Over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return _in_its_precision(self.weight, x, super().forward)


class GroupNorm(nn.GroupNorm):
    """Over groups of channels and all pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        return _in_its_precision(self.weight, x, super().forward)
