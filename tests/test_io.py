# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from ausm_d2.errors import UserError
from ausm_d2.io import atomic_write, read_json


def test_completely_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_write(target) as path:
        path.write_text("first")
        assert path.suffix == ".txt" and not target.exists()
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as path:
        path.write_text("second")
        raise KeyboardInterrupt
    assert target.read_text() == "first" and [file.name for file in target.parent.iterdir()] == ["a.txt"]


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target, reason in ((tmp_path, "Is a directory"), (tmp_path / "file" / "a.txt", "")):
        with pytest.raises(UserError, match=f"{target}: cannot be written: {reason}"), atomic_write(target):
            raise AssertionError("nothing to write to")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a JSON file: .* at line 1"),
        (b"\xff\xfe\x00", "not a JSON file: it is not text"),
        (b"PK\x03\x04", "not a JSON file: "),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json: {message}"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[1]", encoding="utf-8-sig")
    assert read_json(tmp_path / "b.json") == [1]
