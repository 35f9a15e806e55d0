# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Settings of glibc's allocator for processes that allocate and free large arrays."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt


@cache
def keep_freed_memory() -> None:
    """Keep freed memory in the process instead of returning it to the system (glibc only).

    Reallocating returned memory costs one page fault per 4 kB: a fifth of the time of a training item, more in a frame
    encoder on a CPU. Called by commands, not by the library, since other programs may need the memory.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # bytes
        libc.mallopt(_M_MMAP_MAX, 0)  # never use mmap: freed mappings are always returned
