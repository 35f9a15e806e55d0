# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""C++ kernels for the CPU: compiled with -march=native at first use, cached in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


class CompileError(RuntimeError):
    """The library could not be built; the message gives the reason in one line."""


def _processor() -> str:
    """The processor's features, on which -march=native depends: machines of different types may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def _cache() -> Path:
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    folder = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "ausm_d2"


def _text(source: Path) -> str:
    """The text of a source file, preceded by that of the local headers it includes."""
    text = source.read_text()
    return "\n".join([*(_text(source.parent / name) for name in _INCLUDE.findall(text)), text])


def load_library(source: Path) -> ctypes.CDLL:
    """Load the shared library built from ``source``, compiling it unless it is cached.

    The cache is ``$TORCH_EXTENSIONS_DIR/ausm_d2``, else ``$XDG_CACHE_HOME/ausm_d2``, else ``~/.cache/ausm_d2``; the
    compiler is ``$CXX``, else c++. Several processes may call this at once: the library is renamed into place when
    complete.

    Raises:
        CompileError: if there is no compiler, or it fails.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise CompileError("no C++ compiler was found (CXX, c++)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    try:
        key = "\n".join([_text(source), *_FLAGS, version, platform.machine(), _processor()])
        name = f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        path = _cache() / name
        if path.is_file():
            return ctypes.CDLL(str(path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(dir=path.parent)
        except OSError:  # cache folder not writable: compile once per process
            folder = tempfile.mkdtemp()
            path = Path(folder) / "unnamed"
        try:
            made = Path(folder) / name
            run = subprocess.run(
                [compiler, *_FLAGS, "-o", str(made), str(source)], capture_output=True, text=True, check=False
            )
            if run.returncode:
                error = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr[-200:])
                raise CompileError(f"{compiler} failed: {error}")
            library = ctypes.CDLL(str(made))
            made.replace(path)
            return library
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise CompileError(str(error)) from error


@cache
def library(source: Path) -> ctypes.CDLL:
    """:func:`load_library`, cached per process.

    Raises:
        CompileError: if there is no compiler, or it fails.
    """
    return load_library(source)


@cache
def why_not(source: Path) -> str | None:
    """Why the library of ``source`` cannot be built, in one line; None if it can."""
    try:
        library(source)
    except CompileError as error:
        return f"{source.name}: {error}"
    return None
