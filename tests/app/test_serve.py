# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra [app] is not installed")
pytest.importorskip("uvicorn", reason="the extra [app] is not installed")

from ausm_d2.app.serve import listen, scratch_folder
from ausm_d2.cli.main import main
from ausm_d2.errors import UserError
from tests.app.conftest import until


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: cannot be listened at: Address already in use"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match=r"--host 203\.0\.113\.1 --port 0: cannot be listened at"):
        listen("203.0.113.1", 0)  # an address that nobody has


def test_a_folder_that_a_killed_server_left_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "ausm-app-left" / "session").mkdir(parents=True)
    (tmp_path / "ausm-app-left" / "lock").touch()
    with scratch_folder() as path:
        assert [each for each in tmp_path.iterdir()] == [path]
        assert path.stat().st_mode & 0o077 == 0
        with scratch_folder() as other:  # of a second server at the same time
            assert path.exists() and other != path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "more", [["--port", "70000"], ["--port", "-1"], ["--max-mb", "0"], ["--sessions", "x"], ["--idle-minutes", "0"]]
)
def test_limits_that_are_none_are_exit_code_2(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["app", *more])
    assert stop.value.code == 2 and "expected a whole number from" in capsys.readouterr().err


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        main(["app", "--folder", str(tmp_path / "no")])


def test_the_command_serves_on_loopback_until_sigterm_and_leaves_nothing_behind(
    tiny_config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    seen = []

    def visit() -> None:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/sessions", method="POST")
            seen.append(until(lambda: answered(request)))
            [scratch] = tmp_path.glob("ausm-app-*")
            seen.append(len(list(scratch.iterdir())))  # the lock and the session
            events = f"http://127.0.0.1:{port}/s/{json.loads(seen[0])['token']}/events"
            with urllib.request.urlopen(events, timeout=20) as listening:  # a page that stays open
                seen.append(listening.readline())
                os.kill(os.getpid(), signal.SIGTERM)
                seen.append(listening.read())
        except BaseException as error:
            seen.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    visitor.start()
    assert main(["app", "--port", str(port), "--config", str(tiny_config_file), "--folder", str(tmp_path)]) == 0
    visitor.join()
    assert seen[1:] == [2, b'data: {"type": "changed"}\n', b'\ndata: {"type": "end"}\n\n']
    assert capsys.readouterr().out.startswith(f"http://127.0.0.1:{port}/ ")
    assert not list(tmp_path.glob("ausm-app-*"))


def answered(request: urllib.request.Request) -> bytes | None:
    """The body, once the server is there."""
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.read()
    except urllib.error.URLError:
        return None
