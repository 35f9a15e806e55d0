# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from ausm_d2.errors import UserError
from ausm_d2.jobs.report import Row
from ausm_d2.jobs.store import MARKER, ResultStore


def result(folder: Path, text: str = "x") -> Path:
    (folder / "masks").mkdir(parents=True)
    (folder / "tracks.json").write_text(text)
    (folder / "masks" / "00000.png").write_text(text)
    return folder


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_result_is_there_once_and_complete(kind: str, tmp_path: Path) -> None:
    store = ResultStore(str(tmp_path / "out") if kind == "folder" else "memory://results")
    row = Row("sub/a.mp4", "done", 3, 1, 0.5)
    assert store.committed("sub/a.mp4") is None
    assert store.commit(row, result(tmp_path / "one")) == row == store.committed("sub/a.mp4")
    again = Row("sub/a.mp4", "done", 4, 2, 0.1)
    assert store.commit(again, result(tmp_path / "two", "y")) == row  # the first attempt counts
    fs, root = store._fs, store._root
    files = sorted(path[len(root) :] for path in fs.find(root))
    assert files == [f"/sub/a.mp4/{name}" for name in (MARKER, "masks/00000.png", "tracks.json")]
    assert fs.cat_file(f"{root}/sub/a.mp4/tracks.json") == b"x"


@pytest.mark.parametrize("marker", [None, "", '{"video": "a", "sta', "3"])
def test_a_result_without_its_whole_marker_is_replaced(tmp_path: Path, marker: str | None) -> None:
    store = ResultStore(str(tmp_path / "out"))
    store.commit(Row("a", "done"), result(tmp_path / "one"))
    (tmp_path / "out" / "a" / MARKER).unlink()
    if marker is not None:
        (tmp_path / "out" / "a" / MARKER).write_text(marker)
    (tmp_path / "out" / "a" / "of an attempt").touch()
    (tmp_path / "out" / ".attempts" / "1f").mkdir(parents=True, exist_ok=True)
    assert store.committed("a") is None
    store.commit(Row("a", "done", 2), result(tmp_path / "two", "y"))
    store.discard_attempts()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a"]
    assert sorted(path.name for path in (tmp_path / "out" / "a").iterdir()) == [MARKER, "masks", "tracks.json"]
    assert json.loads((tmp_path / "out" / "a" / MARKER).read_text())["frames"] == 2


def test_an_address_that_is_none() -> None:
    with pytest.raises(UserError, match=r"'nowhere://x': Protocol not known: nowhere"):
        ResultStore("nowhere://x")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out' cannot be written: "):
        ResultStore(str(tmp_path / "file" / "out"))
