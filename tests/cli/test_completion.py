# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Shell completion: argcomplete's function for ``ausm`` in bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete", reason="argcomplete is not installed: pip install 'ausm_d2[completion]'")

# What bash does when the Tab key is pressed, without a terminal.
BASH = """
eval "$(register-python-argcomplete ausm)"
COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMP_WORDS=($COMP_LINE); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete ausm
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(folder: Path, line: str) -> list[str]:
    script = folder / "ausm"
    script.write_text(f"#!{sys.executable}\n# PYTHON_ARGCOMPLETE_OK\nfrom ausm_d2.cli.main import console\nconsole()\n")
    script.chmod(0o755)
    root = Path(__file__).resolve().parents[2]
    path = f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", line],
        env={"PATH": path, "PYTHONPATH": str(root), "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [each.strip() for each in done.stdout.splitlines() if each.strip()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ausm ev", {"evaluate"}),
        ("ausm track --wei", {"--weights"}),
        ("ausm track clip.mp4 -o out --save ove", {"overlay"}),
    ],
)
def test_bash_completes_commands_options_and_values(tmp_path: Path, line: str, expected: set[str]) -> None:
    assert set(offered(tmp_path, line)) == expected
