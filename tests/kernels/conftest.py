# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Every kernel of scan and convolution in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ausm_d2.kernels import choice, triton_launch
from ausm_d2.kernels.choice import use_kernels
from ausm_d2.kernels.conv import CONV
from ausm_d2.kernels.scan import SCAN
from tests.kernels.interpreter import GPU, INTERPRETED, RUNS_TRITON

# Without a GPU, Triton's kernels run in its interpreter: see test_interpreter.py.
NAMES = ["reference", "cpu", *(["triton"] if RUNS_TRITON else [])]


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels are forced, and new tensors are made where they run."""
    if INTERPRETED:  # the tests compare by themselves; test_first_use.py has the comparison at first use
        monkeypatch.setattr(choice, "difference", lambda *arguments: None)
        monkeypatch.setattr(triton_launch, "_PROGRAMS_PER_PROCESSOR", 2)
    name = request.param
    for kernel in (*SCAN.kernels, *CONV.kernels):
        reason = kernel.unavailable() if kernel.name == name else None
        if reason is not None:
            pytest.skip(reason)
    with torch.device("cuda" if name == "triton" and GPU else "cpu"), use_kernels(name):
        yield name
