# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Autocast, left for what does not need it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def outside_autocast(x: Tensor) -> AbstractContextManager[None]:
    """What runs on the device of ``x`` meanwhile runs in the dtype of what it gets."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
