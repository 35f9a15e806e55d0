# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Files that are either complete or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; on success it takes the place of ``path``, on failure it is removed.

    The temporary name keeps the suffix of ``path``, so that writers which choose a format by it still do.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would hide results from a user's colleagues
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
