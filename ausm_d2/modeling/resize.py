# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Resizing of features.

Shape shorthand:
    BT: frames
    D: channels
    h, w and h', w': feature size before and after
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ausm_d2.kernels.autocast import outside_autocast


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Resize (BT, D, h, w) bilinearly to the size of ``like``, (BT, D, h', w'). The dtype stays that of ``x``: autocast
    on CUDA would convert to float32."""
    with outside_autocast(x):
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
