# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The packages mamba_ssm and causal_conv1d, whose CUDA kernels the backend ``mamba_ssm`` is."""

from __future__ import annotations

import importlib.util
from functools import cache


@cache
def missing(package: str, extension: str) -> str | None:
    """Why a package's kernels cannot be used: what is not installed; None if all is there.

    Args:
        extension: the module that pip compiles for the GPU; without it there is only Python.
    """
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if importlib.util.find_spec(extension) is None:
        return f"{package} was installed without its CUDA kernels ({extension})"
    return None
