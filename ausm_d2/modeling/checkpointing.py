# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing: a block's activations are recomputed in the backward pass instead of stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run_block(block: Callable[..., Any], *args: Any, checkpointing: bool, random: bool = False) -> Any:
    """``block(*args)``.

    Args:
        checkpointing: store only ``args`` for the backward pass. No effect without gradients.
        random: ``block`` draws random numbers: restore the RNG state for the recomputation.
    """
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=random)
    return block(*args)
