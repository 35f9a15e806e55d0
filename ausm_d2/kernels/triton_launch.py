# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Launching Triton kernels: on CUDA, or slowly on the CPU in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

CHANNELS = 64
"""Channels per group in the kernels of scan and convolution."""
_PROGRAMS_PER_PROCESSOR = 16  # enough to hide memory latency


@cache
def why_not() -> str | None:
    """Why Triton kernels cannot run in this process; None if they can."""
    return "triton is not installed" if importlib.util.find_spec("triton") is None else None


class Launcher:
    """Runs the kernels of a module, which is imported at first use: Triton may be missing, and its import is slow.

    Args:
        package: whose module ``triton_kernels`` holds the kernels.
    """

    def __init__(self, package: str) -> None:
        self._package = package

    @cached_property
    def kernels(self) -> Any:
        """The module."""
        return importlib.import_module(f"{self._package}.triton_kernels")

    def __call__(self, kernel: str, grid: tuple[int, ...], like: Tensor, *arguments: Any, **options: Any) -> None:
        """Run a kernel on the device of ``like``. By default Triton uses the current one, wherever the tensors are."""
        with torch.cuda.device_of(like):
            getattr(self.kernels, kernel)[grid](*arguments, **options)


def shared_grid(x: Tensor) -> tuple[int, int]:
    """Grid (P, G) for ``x`` (N, T, E): P programs share the N sequences, for each of G groups of channels."""
    groups = -(-x.shape[2] // CHANNELS)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    return max(1, min(len(x), _PROGRAMS_PER_PROCESSOR * processors // groups)), groups


def strides(x: Tensor | None) -> tuple[int, int]:
    """Strides of an (N, T, channels) tensor over sequences and frames."""
    return (0, 0) if x is None else (x.stride(0), x.stride(1))
