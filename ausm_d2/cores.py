# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""How many cores there are to use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
