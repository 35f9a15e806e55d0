# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    f"tools.{path.stem}" for path in (ROOT / "tools").glob("*.py") if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # other tests import these modules
def test_every_command_runs_as_a_module(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(command, run_name="__main__")
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_there_are_commands() -> None:
    assert {"tools.benchmark", "tools.experiment", "tools.install_detectron2"} <= set(COMMANDS)


def test_make_gpu_runs_the_command_that_measures_on_a_gpu() -> None:
    """A rule that is printed installs nothing and runs nothing."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    make = ["make", "-n", "gpu", "ARGS=--parts ssm"]
    rule = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    (command,) = [line.split() for line in rule.stdout.splitlines() if "tools.measure_on_gpu" in line]
    assert command[1:] == ["-m", "tools.measure_on_gpu", "--parts", "ssm"]


def test_nothing_edits_the_import_path() -> None:
    folders = (ROOT / name for name in ("ausm_d2", "datasets", "demo", "tools"))
    files = [ROOT / "train_net.py", *(path for folder in folders for path in folder.rglob("*.py"))]
    assert not [str(path) for path in files if "sys.path" in path.read_text()]
