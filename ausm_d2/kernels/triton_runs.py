# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Where Triton's kernels run: on CUDA, and on the CPU, slowly, in Triton's interpreter (TRITON_INTERPRET=1).

The environment variable AUSM_TRITON=0 does without them, where Triton is installed but finds no C compiler, say.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def triton_runs(x: Tensor) -> bool:
    """Whether kernels take tensors like ``x``; float64 is for PyTorch's operations."""
    interpreted = x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if os.environ.get("AUSM_TRITON") == "0":
        return False
    return x.dtype != torch.float64 and (x.device.type == "cuda" or interpreted) and _installed()


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of ``like``: by itself Triton takes the current one, whatever its tensors are on."""
    with torch.cuda.device_of(like):
        kernel[grid](*arguments, **options)
