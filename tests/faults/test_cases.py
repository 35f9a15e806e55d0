# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Inputs that users really have, kept beside the checkout; each case says with its exit code whether all is well.

Every case stands for a kind of input; the tests of the modules hold the kinds, these the cases as they were reported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared" / "cases"
NAMES = sorted(path.parent.name for path in CASES.glob("*/run.py"))

Ask = Callable[[str, Path], dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Runs a case; all in one process that has imported what they need."""
    environment = {
        **os.environ,
        "P": str(ROOT),
        "PY": sys.executable,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    runner = Path(__file__).with_name("case_runner.py")
    with subprocess.Popen(
        [sys.executable, str(runner)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    ) as server:
        assert server.stdin is not None and server.stdout is not None

        def ask(name: str, folder: Path) -> dict[str, Any]:
            request = {"script": str(CASES / name / "run.py"), "folder": str(folder)}
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.mark.skipif(not NAMES, reason="the reported cases are not beside this checkout: ../shared/cases")
@pytest.mark.parametrize("name", NAMES)
def test_a_reported_input_is_handled_correctly_or_refused(ask: Ask, name: str, tmp_path: Path) -> None:
    answer = ask(name, tmp_path)
    assert answer["code"] == 0, answer["output"]
