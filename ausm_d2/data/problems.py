# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""How readers report broken data: they stop at the first problem, or collect all problems while a data set is checked.

``problem`` is for unusable data, ``mismatch`` for files or entries that match nothing, or match twice.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ausm_d2.errors import UserError

_collected: ContextVar[list[str] | None] = ContextVar("_collected", default=None)

logger = logging.getLogger(__name__)


def problem(text: str) -> None:
    """Report a problem (one line: file, field, found, expected). If it returns, the reader skips the entry.

    Raises:
        UserError: unless problems are being collected.
    """
    collected = _collected.get()
    if collected is None:
        raise UserError(text)
    collected.append(text)


_SHOWN = 3  # mismatches logged per kind
_shown: dict[str, list[str]] = defaultdict(list)


def mismatch(kind: str, text: str) -> None:
    """Report files or entries that match nothing: a problem while a data set is checked, else a warning.

    Each text is logged once per process, and only a few of each kind.

    Args:
        kind: groups similar mismatches of a data set.
        text: one line: where, what, what was expected.
    """
    collected = _collected.get()
    if collected is not None:
        collected.append(text)
        return
    shown = _shown[kind]
    if text in shown or len(shown) > _SHOWN:
        return
    shown.append(text)
    logger.warning("%s", text if len(shown) <= _SHOWN else "... and more of this kind: ausm_d2.data.check lists all")


def collecting() -> bool:
    """Whether a data set is being checked, so that checks that take time are made."""
    return _collected.get() is not None


@contextmanager
def collect_problems() -> Iterator[list[str]]:
    """Inside the context, :func:`problem` and :func:`mismatch` append to the yielded list."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


class LeftOut:
    """Counts the entries that a reader skips, by kind."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._counts: Counter[str] = Counter()
        self._unmatched: Counter[str] = Counter()

    def add(self, kind: str) -> None:
        """Count an entry that is skipped by convention."""
        self._counts[kind] += 1

    def unmatched(self, kind: str) -> None:
        """Count an entry that matches nothing: a problem while a data set is checked."""
        self._unmatched[kind] += 1

    def warn(self) -> None:
        """Log what was skipped."""
        for kind, count in self._counts.items():
            logger.warning("%s: left out %d %s", self._path, count, kind)
        for kind, count in self._unmatched.items():
            mismatch(f"{self._path} {kind}", f"{self._path}: left out {count} {kind}")
