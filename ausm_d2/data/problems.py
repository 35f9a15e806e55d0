# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What readers do with broken data: stop at the first problem or, while a data set is checked, note it and go on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ausm_d2.errors import UserError

_collected: ContextVar[list[str] | None] = ContextVar("_collected", default=None)

logger = logging.getLogger(__name__)


def problem(text: str) -> None:
    """Report a problem (one line: file, field, found, expected). A reader that gets back leaves the entry out.

    Raises:
        UserError: unless problems are being collected.
    """
    collected = _collected.get()
    if collected is None:
        raise UserError(text)
    collected.append(text)


@contextmanager
def collect_problems() -> Iterator[list[str]]:
    """While this lasts, :func:`problem` appends to the list that is given out."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


class LeftOut:
    """Counts what a reader skips because the field's practice is to skip it; one warning for each kind."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._counts: Counter[str] = Counter()

    def add(self, kind: str) -> None:
        self._counts[kind] += 1

    def warn(self) -> None:
        for kind, count in self._counts.items():
            logger.warning("%s: left out %d %s", self._path, count, kind)
