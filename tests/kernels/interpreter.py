# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Triton's kernels without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

GPU = torch.cuda.is_available()
RUNS_TRITON = GPU or os.environ.get("TRITON_INTERPRET") == "1"


def run_interpreted(file: str) -> None:
    """The tests of a file that have "triton" and not "interpreter" in their name, in Triton's interpreter.

    In a process of its own: Triton decides at its first import whether it interprets.
    """
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton and not interpreter", file]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-3000:]
