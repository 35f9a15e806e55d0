# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Compilation of C++ kernels on first use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ausm_d2.kernels import cpp


def test_a_failing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    source = tmp_path / "broken.cpp"
    source.write_text("this is no C++\n")
    with pytest.raises(cpp.CompileError, match="error"):
        cpp.load_library(source)
    assert not list((tmp_path / "ausm_d2").iterdir())  # nothing half-written


def test_processes_compile_side_by_side(tmp_path: Path) -> None:
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n')
    code = (
        "import os, runpy; from pathlib import Path\n"
        f"os.environ['TORCH_EXTENSIONS_DIR'] = {str(tmp_path)!r}\n"
        f"cpp = runpy.run_path({cpp.__file__!r})\n"
        f"try: print(cpp['load_library'](Path({str(source)!r})).answer())\n"
        "except cpp['CompileError'] as error: print('skip', error)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate()[0].strip() for process in running]
    if answers[0].startswith("skip"):
        pytest.skip(answers[0])
    assert answers == ["42"] * 3
    assert len(list((tmp_path / "ausm_d2").iterdir())) == 1


def test_a_changed_header_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    (tmp_path / "source").mkdir()
    source, header = tmp_path / "source" / "answer.cpp", tmp_path / "number.h"
    source.write_text('  # include "../number.h"  // a number\nextern "C" int answer() { return kNumber; }\n')
    for number in (42, 43, 42):
        header.write_text(f"constexpr int kNumber = {number};\n")
        try:
            assert cpp.load_library(source).answer() == number
        except cpp.CompileError as error:
            pytest.skip(str(error))
    assert len(list((tmp_path / "cache" / "ausm_d2").iterdir())) == 2


def test_the_error_says_why_a_file_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    source = tmp_path / "lost.cpp"
    source.write_text('#include "not_there.h"\n')
    assert re.search(r"lost\.cpp: .*not_there\.h", cpp.why_not(source) or "")
