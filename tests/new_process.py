# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""New processes without six seconds of imports for each.

A server forks them. It is itself a fork of the process that runs the tests, made before the first test: what the tests
import is imported, and nothing has been computed. A fork made later would not do, since PyTorch cannot compute
gradients in the fork of a process that has computed some.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import cv2
import torch

ROOT = Path(__file__).resolve().parents[1]
_IMPORTED = ["av", "tqdm", "vos_benchmark.evaluator", "ausm_d2.engine", "ausm_d2.jobs.folder", "tests.tiny"]
_IMPORTED += ["timm", "scipy.optimize", "torch.utils.tensorboard"]  # what a training imports when it begins


def start_fork_server() -> ForkServerContext:
    """Of the process that runs the tests, before the first one. The server ends with it."""
    for name in _IMPORTED:
        importlib.import_module(name)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([])
    multiprocessing.resource_tracker.ensure_running()  # a process of its own, not a fork
    run_command = multiprocessing.util.spawnv_passfds
    multiprocessing.util.spawnv_passfds = _fork_server
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        multiprocessing.util.spawnv_passfds = run_command
    return context


def _fork_server(_: bytes, command: list[Any], passed: Sequence[int]) -> int:
    """In place of the start of a Python that runs ``command``, the last of which is code: the fork runs it."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _forget_pytest()
        os.environ["PYTHONPATH"] = str(ROOT)  # processes that these start import the package of this checkout
        # The other end of the pipe by which the server learns that the process that runs the tests has ended. Nothing
        # else is closed: objects of pytest still have the numbers of their files.
        pipe = os.fstat(passed[-1]).st_ino
        for number in range(passed[-1] + 1, passed[-1] + 100):
            with contextlib.suppress(OSError):
                if os.fstat(number).st_ino == pipe:
                    os.close(number)
        exec(command[-1], {})
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _forget_pytest() -> None:
    """In a fork: what pytest has set for the process that runs the tests."""
    faulthandler.disable()
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    sys.unraisablehook = sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__


def call(context: ForkServerContext, log: Path, function: Callable[..., None], *arguments: Any) -> None:
    """``function(*arguments)`` in a new process, whose output goes to ``log``; raises with it if the function did."""
    process = context.Process(target=_call, args=(log, dict(os.environ), function, arguments))
    process.start()
    process.join()
    assert process.exitcode == 0, f"exit code {process.exitcode}: {log.read_text()}"


def _call(log: Path, environment: dict[str, str], function: Callable[..., None], arguments: Sequence[Any]) -> None:
    prepare(log, log)
    os.environ.update(environment)
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None


def run_python(
    context: ForkServerContext, arguments: Sequence[str | Path], folder: Path, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS``: a script, or ``-m MODULE``; what it prints goes through files in ``folder``."""
    command = [str(argument) for argument in arguments]
    process = context.Process(target=_run_python, args=(command, dict(os.environ), folder, cwd))
    process.start()
    process.join()
    out, err = ((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    assert process.exitcode is not None
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _run_python(arguments: list[str], environment: dict[str, str], folder: Path, cwd: Path) -> None:
    prepare(folder / "stdout", folder / "stderr")
    os.environ.update(environment)
    os.chdir(cwd)
    as_main(arguments)


def prepare(stdout: Path, stderr: Path) -> None:
    """Of a fork: its input is empty, its output goes to files, Ctrl-C is an exception, and nothing runs in threads."""
    multiprocessing.set_start_method(None, force=True)  # of its own processes: the default, not the fork server
    signal.signal(signal.SIGINT, signal.default_int_handler)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, flags), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def as_main(arguments: Sequence[str]) -> None:
    """Run ``python ARGUMENTS`` in this process."""
    # The tests import the folder demo as a package; a script may import demo/demo.py by this name.
    for name in [each for each in sys.modules if each.partition(".")[0] == "demo"]:
        del sys.modules[name]
    if arguments[0] == "-m":
        sys.modules.pop(arguments[1], None)
        sys.argv = list(arguments[1:])
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = list(arguments)
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")
