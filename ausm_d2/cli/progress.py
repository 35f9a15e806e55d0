# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Terminal output during a run: a progress bar with frame rate and remaining time, and warnings."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from tqdm import tqdm


class ProgressBar:
    """A progress bar on standard error, if that is a terminal."""

    def __init__(self, unit: str = "frame") -> None:
        self._unit = unit
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int | None) -> None:
        """Show that ``done`` of ``total`` items are done."""
        if self._bar is None:
            quiet = not sys.stderr.isatty()
            self._bar = tqdm(initial=done - 1, total=total, unit=self._unit, disable=quiet, dynamic_ncols=True)
        self._bar.update(done - self._bar.n if not self._bar.disable else 0)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class _AboveTheBar(logging.Handler):
    """Prints messages above the progress bar, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def show_warnings() -> None:
    """Send this package's warnings to standard error, in one line each."""
    logger = logging.getLogger("ausm_d2")
    if not any(isinstance(handler, _AboveTheBar) for handler in logger.handlers):
        handler = _AboveTheBar(logging.WARNING)
        logger.addHandler(handler)
