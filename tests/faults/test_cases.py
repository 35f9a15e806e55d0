# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Inputs that users really have, kept beside the checkout; each case says with its exit code whether all is well.

Every case stands for a kind of input; the tests of the modules hold the kinds, these the cases as they were reported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.faults.case_runner import serve
from tests.new_process import ROOT

CASES = ROOT.parent / "shared" / "cases"
NAMES = sorted(path.parent.name for path in CASES.glob("*/run.py"))

Ask = Callable[[str, Path], tuple[int, str]]


@pytest.fixture(scope="module")
def ask(new_processes: ForkServerContext) -> Iterator[Ask]:
    """Runs a case: its exit code and its output."""
    ours, theirs = Pipe()
    environment = {"P": str(ROOT), "PY": sys.executable, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    server = new_processes.Process(target=serve, args=(theirs, environment))
    server.start()
    theirs.close()

    def ask(name: str, folder: Path) -> tuple[int, str]:
        ours.send((str(CASES / name / "run.py"), folder))
        return ours.recv()

    yield ask
    ours.close()
    server.join()


@pytest.mark.skipif(not NAMES, reason="the reported cases are not beside this checkout: ../shared/cases")
@pytest.mark.parametrize("name", NAMES)
def test_a_reported_input_is_handled_correctly_or_refused(ask: Ask, name: str, tmp_path: Path) -> None:
    code, output = ask(name, tmp_path)
    assert code == 0, output
