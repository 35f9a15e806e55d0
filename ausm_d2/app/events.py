# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Events of a session, from its worker threads to the pages that show it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Event = dict[str, Any]
_MOST = 200  # queued events of a page


class Events:
    """Each listener receives the events sent after it subscribed. ``None`` ends the stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Queue[Event | None]]] = []
        self._ended = False

    @property
    def listened_to(self) -> bool:
        return bool(self._listeners)

    def listen(self) -> asyncio.Queue[Event | None]:
        """A queue of the events from now on. Call it in the event loop; see :meth:`leave`."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        with self._lock:
            if self._ended:
                queue.put_nowait(None)
            self._listeners.append((asyncio.get_running_loop(), queue))
        return queue

    def leave(self, queue: asyncio.Queue[Event | None]) -> None:
        with self._lock:
            self._listeners = [each for each in self._listeners if each[1] is not queue]

    def publish(self, event: Event | None) -> None:
        """Send an event to all listeners; callable from any thread."""
        with self._lock:
            self._ended = self._ended or event is None
            for loop, queue in self._listeners:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_put, queue, event)


def _put(queue: asyncio.Queue[Event | None], event: Event | None) -> None:
    if queue.qsize() >= _MOST:  # the page sleeps: it asks for everything when it wakes
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait({"type": "changed"})
    queue.put_nowait(event)


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collects the warnings that this package logs in this thread inside the context, to show them to the user."""
    notes: list[str] = []
    here = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == here:
                notes.append(record.getMessage())

    handler = Collector(logging.WARNING)
    logger = logging.getLogger("ausm_d2")
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
