# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Structs of addresses and strides with which the C++ kernels of scan and convolution are called (recurrent.h)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor


class Rows(ctypes.Structure):
    """An activation (N, T, channels): ``Rows`` of recurrent.h."""

    _fields_ = [("data", ctypes.c_void_p), ("sequence", ctypes.c_int64), ("frame", ctypes.c_int64)]

    def __init__(self, tensor: Tensor | None = None) -> None:
        if tensor is not None:
            super().__init__(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def fields(sizes: str, flags: str, *others: tuple[Any, str]) -> list[tuple[str, Any]]:
    """``_fields_`` of a struct: 64-bit sizes, 32-bit flags, then the given types. Names are separated by spaces."""
    groups = ((ctypes.c_int64, sizes), (ctypes.c_int32, flags), *others)
    return [(name, kind) for kind, names in groups for name in names.split()]


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def share(x: Tensor) -> dict[str, int]:
    """Number of threads, and of parts into which the sequences are divided (dynamic scheduling).

    More parts than threads balance the load when a thread is preempted. Below 16384 elements per thread, fewer threads
    are faster.
    """
    threads = max(1, min(torch.get_num_threads(), len(x), x.numel() // 16384))
    return {"threads": threads, "parts": 1 if threads == 1 else min(4 * threads, len(x))}


def floats(*shape: int) -> Tensor:
    """An uninitialised float32 tensor on the CPU, independent of PyTorch's default dtype and device."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
