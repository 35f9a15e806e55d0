# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Runs scripts that start this project's commands, many of them, with one import of PyTorch for all.

In the process of a script ``subprocess`` is replaced: a command of this Python is run by a fork, with its own
arguments, folder, environment and files for its output, as a new process would.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image

from ausm_d2.config import load_config
from ausm_d2.data.build import get_records
from ausm_d2.streaming.predictor import VideoPredictor
from tests.new_process import as_main, prepare

_IMPORTS = 6.0  # seconds of a new Python process that a fork does not need


def serve(requests: Connection, environment: dict[str, str]) -> None:
    """In a process of its own: receive a script and a folder, run it in a fork, send its exit code and its output."""
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    # The embedded videos that the scripts take their frames from: rendered once, not by every fork.
    records = get_records("synthvis_val")
    DatasetCatalog.remove("synthvis_val")
    DatasetCatalog.register("synthvis_val", lambda: records)
    _warm_up([records[0].frames[t] for t in range(2)])
    while True:
        try:
            script, folder = requests.recv()
        except EOFError:
            return
        process = _fork(lambda script=script, folder=folder: _run_script(script, folder), folder)
        code = process.wait()
        requests.send((code, process.stdout() + process.stderr()))


def _warm_up(frames: list[np.ndarray]) -> None:
    """What every process does once: kernels are loaded and compared with their references, plugins are imported."""
    importlib.import_module("ausm_d2.cli.tracking")
    Image.init()
    session = VideoPredictor(load_config("synth/ausm_nano.yaml")).start(frames[0])
    session.step(frames[1])


_REAL_RUN, _REAL_POPEN, _REAL_SLEEP = subprocess.run, subprocess.Popen, time.sleep


class _Process:
    """What the scripts use of ``subprocess.Popen``, of a fork."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self.folder = folder
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        limit = time.monotonic() + (timeout or 1e9)
        while self.poll() is None:
            if time.monotonic() > limit:
                raise subprocess.TimeoutExpired([], timeout or 0)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(errors="replace")

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")


def _fork(run: Callable[[], None], folder: Path) -> _Process:
    """Run a function in a fork whose output goes to files in ``folder``."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return _Process(pid, folder)
    code = 1
    try:
        prepare(folder / "stdout", folder / "stderr")
        run()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_script(script: str, folder: Path) -> None:
    tempfile.tempdir = str(folder)
    os.environ["TMPDIR"] = str(folder)
    subprocess.run = _subprocess_run  # type: ignore[assignment]
    subprocess.Popen = _popen  # type: ignore[assignment,misc]
    time.sleep = _sleep  # type: ignore[assignment]
    as_main([script])


def _sleep(seconds: float) -> None:
    """A script that waits for a command to be at work waits for its imports too."""
    _REAL_SLEEP(seconds - _IMPORTS if seconds > _IMPORTS else seconds)


def _popen(command: list[str], *, cwd: Any = None, env: dict[str, str] | None = None, **options: Any) -> Any:
    if command[0] != sys.executable:
        return _REAL_POPEN(command, cwd=cwd, env=env, **options)
    folder = Path(tempfile.mkdtemp(prefix="output-", dir=os.environ["TMPDIR"]))

    def run() -> None:
        time.sleep = _REAL_SLEEP
        os.chdir(cwd or ".")
        os.environ.update(env or {})
        os.environ.setdefault("TMPDIR", tempfile.gettempdir())
        as_main([str(argument) for argument in command[1:]])

    return _fork(run, folder)


def _subprocess_run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    if command[0] != sys.executable:
        return _REAL_RUN(command, **options)
    process = _popen(command, **options)
    return subprocess.CompletedProcess(command, process.wait(), process.stdout(), process.stderr())
