# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ausm_d2.errors import UserError
from ausm_d2.video.ahead import ReadAhead


class Counter:
    """Counts the items that were taken."""

    def __init__(self, count: int) -> None:
        self.taken = 0
        self.closed = threading.Event()
        self.count = count

    def items(self) -> Iterator[int]:
        try:
            for i in range(self.count):
                self.taken += 1
                yield i
        finally:
            self.closed.set()


def test_items_come_in_order_and_never_more_than_a_few_ahead() -> None:
    counter = Counter(50)
    with ReadAhead(counter.items(), depth=3) as ahead:
        for i, item in enumerate(ahead):
            assert item == i
            time.sleep(0.002)
            assert counter.taken <= i + 1 + 3 + 1  # used, waiting, being put
    assert counter.taken == 50 and counter.closed.is_set()


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise UserError("frame 3 is bad")

    ahead = ReadAhead(items())
    assert next(ahead) == 1 and next(ahead) == 2
    with pytest.raises(UserError):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)


def test_closing_ends_the_reader_and_frees_what_it_reads() -> None:
    counter = Counter(10**9)
    ahead = ReadAhead(counter.items())
    assert next(ahead) == 0
    ahead.close()
    assert counter.closed.wait(2.0)
    with pytest.raises(StopIteration):
        next(ahead)


def test_waiting_ends_when_it_is_told_to_stop() -> None:
    release, stop = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        release.wait(10.0)  # a camera that gives nothing

    ahead = ReadAhead(items(), stopped=stop.is_set)
    assert next(ahead) == 0
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(StopIteration):
        next(ahead)
    release.set()
    ahead.close()


def test_of_a_live_source_only_the_newest_item_waits() -> None:
    ready, go = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        go.wait(5.0)
        yield from range(1, 10)
        ready.set()
        time.sleep(0.05)

    with ReadAhead(items(), newest=True) as ahead:
        assert next(ahead) == 0
        go.set()
        ready.wait(5.0)
        assert list(ahead) == [9]
        assert ahead.dropped == 8
