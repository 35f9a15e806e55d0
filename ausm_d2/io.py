# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Files that are written completely or not at all, and JSON files that are read or explained."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ausm_d2.errors import UserError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``, on failure it is removed.

    The temporary name keeps the suffix of ``path``, so that writers which choose a format by it still do.

    Raises:
        UserError: there can be no file of this name.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
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


def read_json(path: str | os.PathLike[str], object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The contents of a JSON file, which may start with a byte order mark.

    Args:
        object_hook: gives what each object is replaced with as soon as it is read.

    Raises:
        UserError: it is missing or no JSON.
    """
    try:
        with open(path, "rb") as file:  # whole: text that is read by lines takes twice as long
            text = file.read().decode("utf-8-sig")
        return json.loads(text, object_hook=object_hook)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a JSON file: it is not text") from None
    except RecursionError:
        raise UserError(f"{path}: not read: lists in lists in lists, too deep") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not a JSON file: {error.msg} at line {error.lineno}") from None
    except ValueError:  # Python's limit for whole numbers
        raise UserError(f"{path}: not read: a number of thousands of digits") from None
