# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Where there is no GPU, the tests of Triton's kernels run in its interpreter."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import NumpyVersion

from tests.kernels.interpreter import GPU

FILES = ("test_first_use.py", "test_scan.py", "test_conv.py", "test_deformable.py", "test_attention.py")


def _calls_int_of_an_array() -> bool:
    """As older versions of the interpreter do, where newer ones call it of the array's only element."""
    from triton.runtime import interpreter

    return "int(self.handle.data)" in inspect.getsource(interpreter)


@pytest.mark.skipif(GPU, reason="there is a GPU for them")
def test_the_tests_of_triton_pass_in_its_interpreter() -> None:
    """In a process of its own: Triton decides at its first import whether it interprets."""
    pytest.importorskip("triton")
    if _calls_int_of_an_array() and NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("this Triton's interpreter fails with NumPy 2.4 or newer (triton-lang/triton, issue 9171)")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton"]
    command += [str(Path(__file__).with_name(name)) for name in FILES]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-3000:]
