# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Many videos: what is left when the command is stopped or killed."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

import pytest

from ausm_d2.config import load_config
from ausm_d2.errors import UserError
from ausm_d2.io import locked
from ausm_d2.jobs import folder as module
from ausm_d2.jobs.folder import track_all
from ausm_d2.jobs.track import Request
from ausm_d2.stopping import StopRequest
from ausm_d2.video.results import ResultFolder
from tests.video.clips import write_clip


def track_in_two_processes(address: str, config: Path, videos: dict[str, Path], output: Path) -> None:
    """In a process of its own. Its two come from the same fork server, at ``address``: they need no imports."""
    server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address, server.ensure_running = address, lambda: None
    context = multiprocessing.get_context("forkserver")
    multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment]
    track_all(load_config(str(config)), videos, Request("", output, save=["masks"]), workers=2)


def test_if_the_command_is_killed_its_workers_stop_and_the_videos_can_be_continued(
    new_processes: ForkServerContext, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    videos = {name: write_clip(tmp_path / "in" / name, 300) for name in ("0.mp4", "1.mp4")}
    address = multiprocessing.forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    command = new_processes.Process(target=track_in_two_processes, args=(address, config, videos, tmp_path / "out"))
    command.start()
    folders = [tmp_path / "out" / name for name in videos]
    end = time.monotonic() + 60
    while not all((folder / "masks" / "00000.png").exists() for folder in folders) and time.monotonic() < end:
        time.sleep(0.02)
    with pytest.raises(UserError, match=r"0\.mp4': another process is writing results into it"):
        ResultFolder(folders[0])
    command.kill()
    command.join()
    for folder in folders:
        while (lock := locked(folder / ".progress" / "lock")) is None and time.monotonic() < end:
            time.sleep(0.02)
        assert lock is not None, "its worker goes on"
        lock.close()
        frames = len(json.loads((folder / "tracks.json").read_text())["video"]["times"])
        earlier = ResultFolder(folder).earlier()
        assert earlier is not None and not earlier.complete and 0 < earlier.frames == frames < 300


def test_a_worker_that_is_stopped_while_it_imports_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked, tracker = [], []  # the start of multiprocessing's resource tracker unblocks signals
    monkeypatch.setattr(multiprocessing.resource_tracker, "ensure_running", lambda: tracker.append(len(blocked)))

    class Importing:
        """Stands for a process that SIGTERM ends, since it has no handler yet."""

        exitcode: int | None = None

        def start(self) -> None:
            blocked.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))

        def terminate(self) -> None:
            self.exitcode = -signal.SIGTERM

        def join(self, timeout: float | None = None) -> None: ...

        def is_alive(self) -> bool:
            return self.exitcode is None

    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=lambda **_: Importing())
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    requests = {name: Request("", Path(name)) for name in "ab"}
    stop = StopRequest()
    rows = module._in_processes(None, requests, 2, lambda: stop() or stop.request())  # type: ignore[arg-type]
    assert list(rows) == []  # stopped before any has begun
    worker = module._Worker(None, 1)  # type: ignore[arg-type]
    worker.give("a", requests["a"])
    worker.stop()
    assert worker.answer().status == "stopped" and blocked == [True, True], "Ctrl-C in the terminal reaches them too"
    assert tracker == [0, 1]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
