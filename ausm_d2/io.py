# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Atomic writing of files and folders; reading of JSON and YAML with clear error messages."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from ausm_d2.errors import UserError


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``, on failure it is removed.

    The temporary name keeps the suffix of ``path``, by which some writers choose the format. If ``path`` is a symbolic
    link, its target is replaced.

    Args:
        durable: wait until the contents are on the disk, so that a machine that fails leaves the old file or the new.

    Raises:
        UserError: if the file cannot be created, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Shortened: mkstemp lengthens the name, which may already have the maximum length.
        prefix = os.fsdecode(os.fsencode(f".{target.stem}")[:100]) + "."
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=target.suffix)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide results from a user's colleagues
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        raise


def locked(path: Path) -> IO[bytes] | None:
    """Open a file and lock it until it is closed. The lock of a killed process is free.

    Returns:
        The open file, not locked where the file system knows no locks; None: another process has locked it.

    Raises:
        OSError: if the file cannot be created.
    """
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its last owner removed it before it was locked here


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder. Its contents become those of ``path`` on success; it is removed on failure.

    ``path`` may be an existing empty folder, including a link, a mount point or the working directory.

    Raises:
        UserError: if ``path`` is not empty, or cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{path}: exists already; a new or empty folder expected")
        target.parent.mkdir(parents=True, exist_ok=True)
        exists = target.exists()
        temporary = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=target if exists else target.parent))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        yield temporary
        if exists:
            for child in list(temporary.iterdir()):
                child.rename(target / child.name)
        else:
            temporary.chmod(0o777 & ~_umask())
            temporary.rename(target)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_room(folder: str | os.PathLike[str], room: int = 2**20) -> None:
    """Create a folder and check that ``room`` bytes can be written to it, before long work begins.

    Raises:
        UserError: if they cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(room))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to: {error.strerror}") from None


def read_json(path: str | os.PathLike[str], object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a JSON file, with or without a byte order mark.

    Args:
        object_hook: as in ``json.loads``.

    Raises:
        UserError: if the file is missing or not valid JSON.
    """
    try:
        with open(path, "rb") as file:  # text mode would take twice as long
            text = file.read().decode("utf-8-sig")
        return json.loads(text, object_hook=object_hook)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a JSON file: it is not text") from None
    except RecursionError:
        raise UserError(f"{path}: not read: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not a JSON file: {error.msg} at line {error.lineno}") from None
    except ValueError:  # Python's limit for integer strings
        raise UserError(f"{path}: not read: a number of thousands of digits") from None


_SafeLoader: Any = yaml.SafeLoader
if yaml.__with_libyaml__:

    class _CParserLoader(Composer, yaml.cyaml.CParser, SafeConstructor, Resolver):
        """``yaml.CSafeLoader``, several times as fast as ``yaml.SafeLoader``, but with the composer of the latter: on
        deep nesting it raises RecursionError, where the composer in C ends the process."""

        def __init__(self, stream: str) -> None:
            yaml.cyaml.CParser.__init__(self, stream)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

    _SafeLoader = _CParserLoader


class _UniqueKeyLoader(_SafeLoader):
    """PyYAML's safe loader, which refuses duplicate keys; PyYAML itself silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _require_few(node, {})
        return node


_MOST_VALUES = 100_000  # of a YAML file; an alias counts as all that it stands for


def _require_few(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """Count the values of a YAML node. A few lines of aliases of aliases stand for billions of them.

    Args:
        counts: of the nodes counted already; 0: being counted.

    Raises:
        yaml.constructor.ConstructorError: there are too many, or an alias is within what it stands for.
    """
    if node in counts:
        if not counts[node]:
            raise yaml.constructor.ConstructorError(None, None, "an alias of what it is a part of", node.start_mark)
        return counts[node]
    counts[node] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [each for pair in node.value for each in pair]
    count = 1 + sum(_require_few(child, counts) for child in children)
    if count > _MOST_VALUES:
        raise yaml.constructor.ConstructorError(None, None, f"more than {_MOST_VALUES} values", node.start_mark)
    counts[node] = count
    return count


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file of plain values; no code is executed.

    Raises:
        UserError: if the file is missing or not YAML, contains Python objects, or has a duplicate key.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
        return yaml.load(text, _UniqueKeyLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a YAML file: not UTF-8 text (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}: not a YAML file that can be used: {error.problem or error.context}{line}") from None
    except yaml.YAMLError as error:  # control characters
        raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: not read: nested too deeply") from None
    except ValueError as error:  # invalid dates and numbers
        raise UserError(f"{path}: not a YAML file that can be used: {error}") from None
