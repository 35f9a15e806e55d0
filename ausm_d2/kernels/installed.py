# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Checks for the packages mamba_ssm and causal_conv1d, which provide the CUDA kernels of the backend ``mamba_ssm``."""

from __future__ import annotations

import importlib.util
from functools import cache


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
