# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The packages mamba_ssm and causal_conv1d, which provide the CUDA kernels of the backend ``mamba_ssm``."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

from ausm_d2.kernels.choice import C, Kernel

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_ELEMENTS = 2**31  # per tensor: their kernels compute addresses in 32 bits


@cache
def missing(package: str, extension: str) -> str | None:
    """Why the kernels of a package are unavailable; None if they are available.

    Args:
        extension: its compiled CUDA module; a CPU-only installation lacks it.
    """
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if importlib.util.find_spec(extension) is None:
        return f"{package} was installed without its CUDA kernels ({extension})"
    return None


class InstalledKernel(Kernel[C]):
    """A kernel of one of the packages."""

    name = "mamba_ssm"
    devices: tuple[str, ...] = ("cuda",)
    package: str
    extension: str

    def unavailable(self) -> str | None:
        return missing(self.package, self.extension)

    def takes(self, x: Tensor, elements: int) -> bool:
        """Whether it supports the activation ``x`` and a largest tensor of so many elements."""
        return x.dtype in _DTYPES and x.numel() > 0 and elements < _MAX_ELEMENTS
