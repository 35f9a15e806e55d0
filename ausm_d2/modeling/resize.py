# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Features of one size to that of others.

Shape shorthand:
    B: images
    C: channels
    H, W: size
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.autocast import outside_autocast


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W), the size of ``like``, bilinearly, in the dtype of ``x``: autocast on CUDA would
    read and write float32."""
    with outside_autocast(x):
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
