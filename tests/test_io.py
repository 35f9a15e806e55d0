# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import resource
import signal
from pathlib import Path

import pytest

from ausm_d2.errors import UserError
from ausm_d2.io import atomic_folder, atomic_write, read_json, require_room


def test_files_are_written_atomically(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_write(target) as path:
        path.write_text("first")
        assert path.suffix == ".txt" and not target.exists()
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as path:
        path.write_text("second")
        raise KeyboardInterrupt
    assert target.read_text() == "first" and [file.name for file in target.parent.iterdir()] == ["a.txt"]


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
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
def test_unreadable_json_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json: {message}"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[1]", encoding="utf-8-sig")
    assert read_json(tmp_path / "b.json") == [1]


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.txt").symlink_to(tmp_path / "disk/a.txt")
    with atomic_write(tmp_path / "a.txt") as path:
        path.write_text("text")
    assert (tmp_path / "a.txt").is_symlink() and (tmp_path / "disk/a.txt").read_text() == "text"


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".txt", "视" * 83 + ".txt"):
        with atomic_write(tmp_path / name) as path:
            path.write_text("text")
        assert (tmp_path / name).read_text() == "text"


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"a\.txt: cannot be written: No space left"), atomic_write(tmp_path / "a.txt"):
        raise full
    with pytest.raises(UserError, match="out: cannot be written: No space left"), atomic_folder(tmp_path / "out"):
        raise full
    assert not list(tmp_path.iterdir())
    require_room(tmp_path / "new")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        with pytest.raises(UserError, match="new: cannot be written to: File too large"):
            require_room(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("kind", ["new", "empty", "link", "."])
def test_folders_are_written_atomically(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    target = Path(".") if kind == "." else tmp_path / kind

    def write() -> None:
        with atomic_folder(target) as folder:
            (folder / "a").mkdir()
            (folder / "a/b.txt").write_text("text")
            if broken:
                raise KeyboardInterrupt

    broken = True
    with pytest.raises(KeyboardInterrupt):
        write()
    assert not target.exists() or not list(target.iterdir())
    broken = False
    write()
    assert [path.name for path in target.iterdir()] == ["a"] and (target / "a/b.txt").read_text() == "text"
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(UserError, match="exists already; a new or empty folder expected"):
        write()
