# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Dtypes and memory layouts required by the fused kernels."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

_Given = TypeVar("_Given", Tensor, Tensor | None)


def rows(tensor: _Given, dtype: torch.dtype) -> _Given:
    """Convert to ``dtype`` with stride 1 in the last dimension; the other strides may be anything."""
    if tensor is None:
        return tensor
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def plain(tensor: _Given, dtype: torch.dtype) -> _Given:
    """Convert to ``dtype``, contiguous."""
    return tensor if tensor is None else tensor.to(dtype).contiguous()


def working_state(initial: Tensor, dtype: torch.dtype, inplace: bool) -> Tensor:
    """The state, contiguous in ``dtype``, for kernels that overwrite it; the caller's memory only if ``inplace``."""
    state = plain(initial, dtype)
    return state.clone() if state is initial and not inplace else state


def overwritten(last: Tensor, worked_on: Tensor | None, given: Tensor | None, inplace: bool) -> Tensor:
    """The state to return. In place: the caller's tensor, after copying back the converted copy ``worked_on``."""
    if not inplace or given is None:
        return last
    return given if worked_on is given else given.copy_(last)


def few(channels: int) -> int:
    """A smaller number of channels with the same remainder for vectors and blocks of up to 128."""
    return channels if channels <= 256 else 128 + channels % 128
