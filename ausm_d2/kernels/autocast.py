# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Autocast helpers: its current dtype, and a context that turns it off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_dtype(kind: str) -> torch.dtype | None:
    """The autocast dtype of a device type ("cpu", "cuda"); None where autocast is off or not supported."""
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def outside_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A context without autocast on the device type of ``x``."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
