# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Dtypes and memory layouts that the fused kernels ask for."""

from __future__ import annotations

import torch
from torch import Tensor


def rows(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The numbers of the last dimension next to each other, the other dimensions at any distance."""
    if tensor is None:
        return None
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def plain(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Contiguous."""
    return None if tensor is None else tensor.to(dtype).contiguous()


def overwritten(last: Tensor, worked_on: Tensor | None, given: Tensor | None, inplace: bool) -> Tensor:
    """The state to return: in place, the caller's own tensor, which may not be the one that the kernel worked on."""
    if not inplace or given is None:
        return last
    return given if worked_on is given else given.copy_(last)


def few(channels: int) -> int:
    """A smaller number of channels that fills vectors and blocks of up to 128 as far as ``channels`` does."""
    return channels if channels <= 256 else 128 + channels % 128
