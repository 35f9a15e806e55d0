# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What readers do with broken data: stop at the first problem or, while a data set is checked, note it and go on.

``problem`` is for what cannot be used, ``mismatch`` for what is there and fits nothing, or twice.
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


_SHOWN = 3  # mismatches of a kind
_shown: dict[str, list[str]] = defaultdict(list)


def mismatch(kind: str, text: str) -> None:
    """Report files or entries that match nothing: a problem while a data set is checked, else a warning.

    Each text is logged once in a process, and no more than a few of a kind.

    Args:
        kind: the same for all of one kind in a data set.
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
    """Counts what a reader skips; one line for each kind."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._counts: Counter[str] = Counter()
        self._unmatched: Counter[str] = Counter()

    def add(self, kind: str) -> None:
        """One more that is skipped because the field's practice is to skip it."""
        self._counts[kind] += 1

    def unmatched(self, kind: str) -> None:
        """One more that is skipped because it matches nothing: a problem while a data set is checked."""
        self._unmatched[kind] += 1

    def warn(self) -> None:
        """Log what was skipped."""
        for kind, count in self._counts.items():
            logger.warning("%s: left out %d %s", self._path, count, kind)
        for kind, count in self._unmatched.items():
            mismatch(f"{self._path} {kind}", f"{self._path}: left out {count} {kind}")
