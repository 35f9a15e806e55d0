# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""PyTorch's norms, which return half precision if their weights are stored in half precision (precision.py).

Under autocast on CUDA, PyTorch's own norms convert their input to float32 and return float32; every residual sum after
them is then float32 too, until the next linear layer converts it back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm_d2.kernels.autocast import outside_autocast

_HALF = (torch.bfloat16, torch.float16)


class LayerNorm(nn.LayerNorm):
    """Over the last dimension. The kernels compute in float32 for every input and output dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.weight.dtype not in _HALF:
            return super().forward(x)
        with outside_autocast(x):
            return super().forward(x.to(self.weight.dtype))


class GroupNorm(nn.GroupNorm):
    """Over groups of channels and all pixels. Computed on a float32 copy: in some versions of PyTorch the CUDA kernel
    rounds mean and variance to half precision before using them (pytorch/pytorch#183946)."""

    def forward(self, x: Tensor) -> Tensor:
        """(BT, D, ...) -> (BT, D, ...)."""
        dtype = self.weight.dtype
        if dtype not in _HALF:
            return super().forward(x)
        with outside_autocast(x):
            weight, bias = self.weight.float(), self.bias.float()
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(dtype)
