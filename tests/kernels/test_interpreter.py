# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Where there is no GPU, the tests of Triton's kernels run in its interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.interpreter import GPU

FILES = ("test_first_use.py", "test_scan.py", "test_conv.py", "test_deformable.py", "test_attention.py")


@pytest.mark.skipif(GPU, reason="there is a GPU for them")
def test_the_tests_of_triton_pass_in_its_interpreter() -> None:
    """In a process of its own: Triton decides at its first import whether it interprets."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton"]
    command += [str(Path(__file__).with_name(name)) for name in FILES]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-3000:]
