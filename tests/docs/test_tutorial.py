# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""docs/tutorial.ipynb runs from its first cell to its last."""

from __future__ import annotations

import json
import os
import shutil
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from tests.new_process import ROOT, call

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def _run_cells(sources: list[str], folder: Path, out: Path) -> None:
    """In a process of its own, as a kernel runs them; what each printed, displayed and returned goes to ``out``."""
    os.chdir(folder)
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    outputs = []
    for source in sources:
        with capture_output() as captured:
            result = shell.run_cell(source)
        result.raise_error()
        pictures = sum("image/jpeg" in each.data for each in captured.outputs)
        outputs.append({"text": captured.stdout, "pictures": pictures, "value": repr(result.result)})
    out.write_text(json.dumps(outputs))


@pytest.fixture(scope="module")
def outputs(new_processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each code cell gave, run in a folder ``docs`` beside the clips, with half of the frames."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "docs").mkdir()
    shutil.copytree(ROOT / "demo" / "clips", folder / "demo" / "clips")
    sources = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert "FRAMES = 12" in sources[0]
    sources[0] = sources[0].replace("FRAMES = 12", "FRAMES = 6")
    call(new_processes, folder / "log", _run_cells, sources, folder / "docs", folder / "outputs.json")
    return json.loads((folder / "outputs.json").read_text())


def test_the_cells_say_what_they_should(outputs: list[dict[str, Any]]) -> None:
    text = "\n".join(each["text"] for each in outputs)
    for expected in ("6 (432, 768, 3)", "the same: True", "10 steps, loss of the last:"):
        assert expected in text
    assert sum(each["pictures"] for each in outputs) == 5
    [scores] = [each["value"] for each in outputs if each["value"] != "None"]
    assert "'J&F'" in scores


def test_the_notebook_is_stored_without_outputs() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
    nbformat.validate(book)
