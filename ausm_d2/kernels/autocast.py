# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Autocast: which dtype it gives, and how to leave it for operations that do not need it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_dtype(kind: str) -> torch.dtype | None:
    """The dtype that autocast gives on devices of this type ("cpu", "cuda"); None where it is off or there is none."""
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def outside_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Inside the context, operations on the device of ``x`` keep the dtype of their inputs."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
