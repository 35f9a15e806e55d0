# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Dtypes and memory layouts required by the fused kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def rows(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Convert to ``dtype`` with stride 1 in the last dimension; the other strides may be anything."""
    if tensor is None:
        return None
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def plain(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Convert to ``dtype``, contiguous."""
    return None if tensor is None else tensor.to(dtype).contiguous()


def overwritten(last: Tensor, worked_on: Tensor | None, given: Tensor | None, inplace: bool) -> Tensor:
    """The state to return. In place: the caller's tensor, after copying back the converted copy ``worked_on``."""
    if not inplace or given is None:
        return last
    return given if worked_on is given else given.copy_(last)


def few(channels: int) -> int:
    """A smaller number of channels with the same remainder for vectors and blocks of up to 128."""
    return channels if channels <= 256 else 128 + channels % 128
