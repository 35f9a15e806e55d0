# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Errors for people: what, where, found, expected; one line; exit code not 0."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ausm_d2.allocator import keep_freed_memory


class UserError(ValueError):
    """A mistake in what the user gave (a file, a key, a prompt). Its text is one line, complete without a traceback."""


def cli(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and leave the process: a ``UserError`` becomes one line on stderr and exit code 1."""
    keep_freed_memory()
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output (head, less) has left
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
