# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Resizing of features.

Shape shorthand:
    B: images
    C: channels
    h, w: size before; H, W: size after
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.autocast import outside_autocast


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear: (B, C, h, w) -> (B, C, H, W), the size of ``like``, in the dtype of ``x``: autocast on CUDA would
    convert to float32."""
    with outside_autocast(x):
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
