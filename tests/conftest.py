# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Fixtures every test file may use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and video kept beside the checkout; tests that need them skip where they are absent."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no real data: the folder ../shared/data is not beside this checkout")
    return path
