# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Memory of a process that makes and drops large arrays all the time."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt


@cache
def keep_freed_memory() -> None:
    """Freed memory stays with the process from now on (with glibc; elsewhere nothing happens).

    Memory that goes back to the system costs a page fault for every 4 kB when it is asked for again: a fifth of the
    time of a training item, more of a frame encoder's on a CPU. Commands do this first; a library does not, whose
    caller may want the memory back.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # bytes
        libc.mallopt(_M_MMAP_MAX, 0)  # a mapping of its own for nothing: those always go back
