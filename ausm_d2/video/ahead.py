# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads frames in a separate thread, while the model processes earlier ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_DEPTH = 3  # maximum number of waiting frames: 19 MB at 1080p
_PATIENCE = 0.1  # seconds between checks whether to stop


class _End:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[Item]):
    """An iterator over ``items`` that a thread keeps a few items ahead of the consumer.

    An exception of ``items`` is raised when its item is due. The thread ends with ``close`` or after the last item.
    """

    def __init__(
        self,
        items: Iterator[Item],
        *,
        depth: int = _DEPTH,
        newest: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            items: from now on used by the thread only.
            depth: maximum number of waiting items, besides the one that is being read.
            newest: for a live source, which is read at full speed: only the newest item waits, older ones are dropped.
            stopped: polled while waiting; True ends the iteration.
        """
        self._items = items
        self._newest = newest
        self._stopped = stopped
        self._waiting: queue.Queue[Item | _End] = queue.Queue(1 if newest else depth)
        self._closed = threading.Event()
        self.dropped = 0  # items of a live source that arrived too fast
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        end = _End()
        try:
            for item in self._items:
                if self._closed.is_set() or not self._put(item):
                    break
        except BaseException as error:  # raised again in the consumer's thread
            end = _End(error)
        finally:
            close = getattr(self._items, "close", None)  # of a generator: releases files and cameras
            if close is not None:
                close()
        self._put(end, force=True)

    def _put(self, item: Item | _End, force: bool = False) -> bool:
        while not self._closed.is_set():
            try:
                self._waiting.put(item, timeout=_PATIENCE if force or not self._newest else 0)
                return True
            except queue.Full:
                if self._newest and not force:
                    try:
                        self._waiting.get_nowait()
                        self.dropped += 1
                    except queue.Empty:
                        pass
        return False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        while not self._closed.is_set() and not self._stopped():
            try:
                item = self._waiting.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
            if not isinstance(item, _End):
                return item
            self._closed.set()
            if item.error is not None:
                raise item.error
            break
        raise StopIteration

    def close(self) -> None:
        """End the thread; waits at most one second, because it may be blocked by a device."""
        self._closed.set()
        self._thread.join(timeout=1.0)

    def __enter__(self) -> ReadAhead[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
