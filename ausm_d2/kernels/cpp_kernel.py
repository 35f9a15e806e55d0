# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What the C++ kernels for the CPU have in common, and the geometry of their convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ausm_d2.kernels import cpp
from ausm_d2.kernels.choice import C, Kernel


class CppKernel(Kernel[C]):
    """A kernel that is compiled from ``source`` at its first use."""

    name = "cpu"
    devices = ("cpu",)
    source: ClassVar[Path]

    def unavailable(self) -> str | None:
        return cpp.why_not(self.source)


def convolved_size(x: Tensor, side: int, stride: int, padding: tuple[int, int, int, int]) -> tuple[int, int]:
    """(h', w') of a convolution of x (BT, C, h, w).

    Args:
        side: of the kernel.
        padding: zeros at the left, right, top and bottom.
    """
    left, right, top, bottom = padding
    height, width = x.shape[2] + top + bottom, x.shape[3] + left + right
    return (height - side) // stride + 1, (width - side) // stride + 1
