# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""docs/tutorial.ipynb runs from its first cell to its last."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict]]:
    """What each code cell gave, run in a folder ``docs`` beside the clips, with half of the frames."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "docs").mkdir()
    shutil.copytree(ROOT / "demo" / "clips", folder / "demo" / "clips")
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert "FRAMES = 12" in book.cells[1].source
    book.cells[1].source = book.cells[1].source.replace("FRAMES = 12", "FRAMES = 6")
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(folder / "docs")}}).execute()
    return [cell.outputs for cell in book.cells if cell.cell_type == "code"]


def test_the_cells_say_what_they_should(outputs: list[list[dict]]) -> None:
    text = "\n".join(each["text"] for cell in outputs for each in cell if each["output_type"] == "stream")
    for expected in ("6 (432, 768, 3)", "the same: True", "10 steps, loss of the last:"):
        assert expected in text
    pictures = [each for cell in outputs for each in cell if "image/jpeg" in each.get("data", {})]
    assert len(pictures) == 5
    [scores] = [each for cell in outputs for each in cell if each["output_type"] == "execute_result"]
    assert "'J&F'" in scores["data"]["text/plain"]


def test_the_notebook_is_stored_without_outputs() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
    nbformat.validate(book)
