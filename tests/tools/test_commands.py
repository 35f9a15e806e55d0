# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmark import make_parser

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


def test_what_make_gpu_runs_is_there_and_can_be_parsed() -> None:
    """Here without a GPU; a rule that is printed installs nothing and downloads nothing."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    rule = subprocess.run(["make", "-n", "gpu"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [shlex.split(line.split("||")[0]) for line in rule.splitlines() if "-m tools.benchmark " in line]
    assert [words[3] for words in commands] == ["ssm", "stream", "stream", "train"]
    for words in commands:
        args = make_parser().parse_args(words[3:])
        assert args.device == "cuda" and args.json.parent == Path("output/gpu")
        configs = getattr(args, "config_file", [])
        assert all((ROOT / config).is_file() for config in ([configs] if isinstance(configs, str) else configs))
    (tests,) = [line.split("||")[0].split() for line in rule.splitlines() if "-m pytest " in line]
    assert all((ROOT / path).exists() for path in tests[3:])


def test_nothing_edits_the_import_path() -> None:
    folders = (ROOT / name for name in ("ausm_d2", "datasets", "demo", "tools"))
    files = [ROOT / "train_net.py", *(path for folder in folders for path in folder.rglob("*.py"))]
    assert not [str(path) for path in files if "sys.path" in path.read_text()]
