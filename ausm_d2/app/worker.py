# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The background task of a session: a run, or writing a download."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ausm_d2.app.events import Events
from ausm_d2.errors import UserError

logger = logging.getLogger(__name__)


class Worker:
    """At most one thread. :meth:`start` and :meth:`stop` are called by one thread at a time."""

    def __init__(self, events: Events) -> None:
        """
        Args:
            events: receive the end of the task, and errors.
        """
        self._events = events
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.doing: str | None = None  # name of the running task

    def stopped(self) -> bool:
        """Whether the task has been asked to stop."""
        return self._stop.is_set()

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Start a task. The previous one must have been stopped."""
        self._stop.clear()
        self.doing = name
        self._thread = threading.Thread(target=self._work, args=(work,), name=f"app {name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the task after its current frame; returns when it has ended."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except UserError as error:
            self._events.publish({"type": "error", "message": str(error)})
        except Exception:
            logger.exception("an error in a session")
            self._events.publish({"type": "error", "message": "an error inside the program; its log has more"})
        finally:
            self.doing = None
            self._events.publish({"type": "changed"})
