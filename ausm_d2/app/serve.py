# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Life cycle of the server: its socket, signals, and a temporary folder."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import uvicorn
from starlette.types import ASGIApp

from ausm_d2.errors import UserError

_PREFIX = "ausm-app-"
_PATIENCE = 2  # seconds that pages have to finish what they read
_LOOK = 0.1  # seconds between two looks at whether to stop


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        port: 0: any free one.

    Raises:
        UserError: the address does not exist, or is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen()
        except BaseException:
            made.close()
            raise
        return made
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: cannot be listened at: {reason}") from None


class _Server(uvicorn.Server):
    """Leaves signals to the caller."""

    def capture_signals(self) -> Any:
        return nullcontext()


def serve(app: ASGIApp, sock: socket.socket, stopped: Callable[[], bool], closing: Callable[[], None]) -> None:
    """Answer requests until ``stopped`` is true.

    Args:
        closing: called before the server stops; it ends the pages' event streams.
    """
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # addresses hold tokens
            server_header=False,
            timeout_graceful_shutdown=_PATIENCE,
        )
    )

    async def both() -> None:
        async def watch() -> None:
            while not stopped():
                await asyncio.sleep(_LOOK)
            await asyncio.to_thread(closing)
            server.should_exit = True

        task = asyncio.create_task(watch())
        await server.serve(sockets=[sock])
        task.cancel()

    asyncio.run(both())


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, readable by this user only. Folders of servers that were killed are removed too: their locks
    are free."""
    base = Path(tempfile.gettempdir())
    for other in base.glob(f"{_PREFIX}*"):
        with suppress(OSError), (other / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        lock: IO[bytes]
        with (path / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
