# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Runs scripts that start this project's commands, many of them, with one import of PyTorch for all.

A process of its own: it reads a line of JSON for each script, forks, and answers with a line of JSON. In the fork
``subprocess`` is replaced: a command of this Python is run by another fork, with its own arguments, folder, environment
and files for its output, as a new process would.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    # What takes time to import; the commands themselves are imported by each fork.
    import av  # noqa: F401
    import cv2
    import torch
    import tqdm  # noqa: F401
    import vos_benchmark.evaluator  # noqa: F401
    from detectron2.data import DatasetCatalog

    import ausm_d2.engine
    import ausm_d2.evaluation.submission.archive
    import ausm_d2.streaming.predictor
    import ausm_d2.visualization  # noqa: F401
    from ausm_d2.data.build import get_records

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    # The embedded videos that the scripts take their frames from: rendered once, not by every fork.
    records = get_records("synthvis_val")
    DatasetCatalog.remove("synthvis_val")
    DatasetCatalog.register("synthvis_val", lambda: records)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        folder = Path(request["folder"])
        began = os.times()
        process = _fork(lambda request=request, folder=folder: _run_script(request["script"], folder), folder)
        code = process.wait()
        ended = os.times()
        spent = sum(ended[2:4]) - sum(began[2:4])
        output = process.stdout() + process.stderr()
        answers.write(json.dumps({"code": code, "output": output, "cpu_seconds": spent}) + "\n")
        answers.flush()


_REAL_RUN, _REAL_POPEN = subprocess.run, subprocess.Popen


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


def _fork(run: Any, folder: Path) -> _Process:
    """Run a function in a fork whose output goes to files in ``folder``."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return _Process(pid, folder)
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
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
    _as_main([script])


def _as_main(arguments: list[str]) -> None:
    """Run ``python ARGUMENTS`` in this process."""
    if arguments[0] == "-m":
        sys.modules.pop(arguments[1], None)
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")


def _popen(command: list[str], *, cwd: Any = None, env: dict[str, str] | None = None, **options: Any) -> Any:
    if command[0] != sys.executable:
        return _REAL_POPEN(command, cwd=cwd, env=env, **options)
    folder = Path(tempfile.mkdtemp(prefix="output-", dir=os.environ["TMPDIR"]))

    def run() -> None:
        os.chdir(cwd or ".")
        os.environ.update(env or {})
        os.environ.setdefault("TMPDIR", tempfile.gettempdir())
        _as_main([str(argument) for argument in command[1:]])

    return _fork(run, folder)


def _subprocess_run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    if command[0] != sys.executable:
        return _REAL_RUN(command, **options)
    process = _popen(command, **options)
    return subprocess.CompletedProcess(command, process.wait(), process.stdout(), process.stderr())


if __name__ == "__main__":
    main()
