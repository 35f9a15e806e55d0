# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Graceful stop on Ctrl-C and SIGTERM (Slurm, ``docker stop``, ``timeout``)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType


class StopRequest:
    """A context in which the first SIGINT or SIGTERM sets a flag and the second raises KeyboardInterrupt.

    Outside the main thread no handler is installed: Python handles signals in the main thread only.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self._signals = signals
        self._seen = threading.Event()
        self._before: dict[int, signal.Handlers | object] = {}
        self.signal: int | None = None  # number of the signal received

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self._seen.is_set()

    def request(self) -> None:
        """Request a stop, like a signal."""
        self._seen.set()

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._seen.is_set():
            raise KeyboardInterrupt
        self.signal = number
        self._seen.set()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
