# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Memory for time in training: what a block computes on the way is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run_block(block: Callable[..., Any], *args: Any, checkpointing: bool, random: bool = False) -> Any:
    """``block(*args)``.

    Args:
        checkpointing: keep only ``args``; without gradients there is nothing to keep.
        random: it draws random numbers, which have to be the same the second time.
    """
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=random)
    return block(*args)
