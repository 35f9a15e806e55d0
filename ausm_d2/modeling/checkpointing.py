# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing: less memory in training, for recomputing the activations in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run_block(block: Callable[..., Any], *args: Any, checkpointing: bool, random: bool = False) -> Any:
    """``block(*args)``.

    Args:
        checkpointing: store only ``args`` for the backward pass; no effect without gradients.
        random: the block draws random numbers, so the RNG state is restored for the recomputation.
    """
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=random)
    return block(*args)
