# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The long form is tests/faults/kill_and_resume.py."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.faults import kill_and_resume
from tests.new_process import call


def _train_and_kill(folder: Path, kills: int, workers: int, world: int) -> None:
    counts = kill_and_resume.run(folder, kills=kills, workers=workers, world=world, iterations=6, seed=workers)
    assert counts["kills"] == kills


@pytest.mark.parametrize(("workers", "world", "kills"), [(1, 1, 2), (0, 2, 1)])
def test_a_killed_and_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    workers: int, world: int, kills: int, new_processes: ForkServerContext, tmp_path: Path
) -> None:
    call(new_processes, tmp_path / "log", _train_and_kill, tmp_path / "trainings", kills, workers, world)
