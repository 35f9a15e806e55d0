# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Comparisons with float64."""

from __future__ import annotations

from torch import Tensor


def assert_near(found: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Of one shape, and as near as ``tolerance`` times the largest number."""
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-6)
    assert error < tolerance, f"{what}: relative error {error:.2e}"
