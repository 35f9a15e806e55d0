# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The long form is tests/faults/kill_and_resume.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.kill_and_resume import run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.mark.parametrize(("workers", "world", "kills"), [(2, 1, 2), (0, 2, 1)])
def test_a_training_that_is_killed_and_resumed_is_the_one_left_alone_bit_for_bit(
    workers: int, world: int, kills: int, tmp_path: Path
) -> None:
    counts = run(tmp_path, kills=kills, workers=workers, world=world, iterations=10, seed=workers)
    assert counts["kills"] == kills
