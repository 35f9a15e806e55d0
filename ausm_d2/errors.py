# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""User errors, how commands report them, and counts in what they say."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ausm_d2.allocator import keep_freed_memory


class UserError(ValueError):
    """An error in the user's input (file, key, prompt). The message is one line: what, where, found, expected."""


def counted(number: int, noun: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def cli(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit. A ``UserError`` is printed as one line on stderr, with exit code 1."""
    keep_freed_memory()
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # stdout was closed (head, less)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
