# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The long form is tests/faults/kill_and_resume.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.mark.parametrize(("workers", "world", "kills"), [(1, 1, 2), (0, 2, 1)])
def test_a_killed_and_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    workers: int, world: int, kills: int
) -> None:
    # A process of its own: PyTorch cannot compute gradients in the fork of one that has computed some.
    command = [sys.executable, "-m", "tests.faults.kill_and_resume", "--kills", kills, "--workers", workers]
    command += ["--processes", world, "--iterations", 4, "--seed", workers]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"'kills': {kills}," in done.stdout, done.stdout
