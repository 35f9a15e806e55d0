# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Several processes that work together: they leave together, and one that loses another says so in one line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from detectron2.utils import comm
from torch.distributed import distributed_c10d
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ausm_d2.errors import UserError

_AGAIN = "--resume continues from the last checkpoint"
_USER_ERROR = "ausm_d2.errors.UserError: "
_NOT_FOUND = ("torch.distributed.DistStoreError: ", "torch.distributed.DistNetworkError: ")


def leave_together(seconds: float = 600.0) -> None:
    """Call it in all processes when none will talk to the others any more.

    gloo breaks off whatever a process is still busy with, a barrier that is all but over too, as soon as another one
    closes its connections. So none leaves until all are here; they meet in the store, which is no part of gloo.

    Args:
        seconds: to wait for the others at most.
    """
    if comm.get_world_size() == 1:
        return
    store = distributed_c10d._get_default_store()
    here = store.add("ausm_d2/here", 1)
    until = time.monotonic() + seconds
    if comm.is_main_process():  # it may hold the store, so it goes last
        while here < comm.get_world_size() and time.monotonic() < until:
            time.sleep(0.02)
            here = store.add("ausm_d2/here", 0)
        store.set("ausm_d2/leave", "")
        gone = 1
        while gone < comm.get_world_size() and time.monotonic() < until:
            time.sleep(0.02)
            gone = 1 + store.add("ausm_d2/gone", 0)
    else:
        while not store.check(["ausm_d2/leave"]) and time.monotonic() < until:
            time.sleep(0.02)
        store.add("ausm_d2/gone", 1)


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
    """In each of several processes: another one that is gone, or silent for longer than the time-out.

    Raises:
        UserError: so it is.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip()
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in text.lower():
            raise
        raise UserError(
            f"process {comm.get_rank()} of {comm.get_world_size()}: another process is gone, or was silent for longer "
            f"than --timeout ({' '.join(text.splitlines()[0].split())}); its own log says why. {_AGAIN}"
        ) from None


@contextlib.contextmanager
def errors_of_processes(url: str) -> Iterator[None]:
    """What a process that was started here ended with, as one line.

    Args:
        url: at which the processes meet.

    Raises:
        UserError: the process raised one, it was killed, or it did not find the others.
    """
    try:
        yield
    except ProcessRaisedException as error:
        lines = error.msg.strip().splitlines()
        for kind in _NOT_FOUND:  # lines of C++ may follow
            for line in lines:
                if line.startswith(kind):
                    raise UserError(
                        f"--dist-url {url}: the processes did not meet: {line.removeprefix(kind)}"
                    ) from None
        last = lines[-1]
        if not last.startswith(_USER_ERROR):
            raise
        raise UserError(last.removeprefix(_USER_ERROR)) from None
    except ProcessExitedException as error:
        how = f"killed by {error.signal_name}" if error.signal_name else f"ended with exit code {error.exit_code}"
        raise UserError(f"process {error.error_index} of this machine was {how}; {_AGAIN}") from None
