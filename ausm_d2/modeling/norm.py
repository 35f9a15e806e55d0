# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""PyTorch's norms, which stay in half precision where their weights are kept in it (precision.py).

Autocast on CUDA has them read a float32 copy and write float32, and all that is added to it is float32 too, until the
next linear layer copies it again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm_d2.kernels.autocast import outside_autocast

_HALF = (torch.bfloat16, torch.float16)


class LayerNorm(nn.LayerNorm):
    """Over the last dimension. The kernels compute in float32 whatever they read and write."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.weight.dtype not in _HALF:
            return super().forward(x)
        with outside_autocast(x):
            return super().forward(x.to(self.weight.dtype))


class GroupNorm(nn.GroupNorm):
    """Over groups of channels and all pixels. It goes through float32: CUDA's kernel rounds mean and variance before
    it uses them, in some versions (pytorch/pytorch#183946)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        dtype = self.weight.dtype
        if dtype not in _HALF:
            return super().forward(x)
        with outside_autocast(x):
            weight, bias = self.weight.float(), self.bias.float()
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(dtype)
