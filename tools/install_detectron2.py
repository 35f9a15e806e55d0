#!/usr/bin/env python3
# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Install Detectron2 without a compiler: ``python tools/install_detectron2.py``.

Detectron2 is not on the package index under its own name. ``sal-detectron2==0.7.2`` is: its Python code is that of
upstream commit a59f0563 (17 April 2024), but for the version string, a bug fix (``list(self._fallback_candidates)`` in
``data/common.py``) and a test helper. Its file cannot be installed as it is: it is tagged for Python 3.10, holds a
compiled ``_C`` for that Python alone, asks for ``numpy<2``, and puts a package named ``tools`` at the top level. This
script fetches that file through pip, pinned by its SHA-256, and repacks its Python code and its data as a wheel named
``detectron2``:

* version ``0.6+a59f0563``: upstream's number at that commit, and the commit; ``detectron2.__version__`` says the same;
* requirements that are what the code imports (see ``REQUIREMENTS``);
* nothing compiled. What needs ``_C`` fails when it is used, not when Detectron2 is imported: deformable convolution and
  rotated boxes. The COCO evaluator falls back to pycocotools.

Where ``detectron2`` can be imported already, for example from the official source, nothing is done.
pip is run as this Python's, with the user's pip settings (``PIP_CONSTRAINT=constraints.txt`` pins what it installs).
Only the standard library is used.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

SOURCE = "sal-detectron2==0.7.2"
SOURCE_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
NAME = "detectron2"
VERSION = "0.6+a59f0563"
REQUIREMENTS = (
    "torch",  # upstream leaves torch and torchvision to the user; importing detectron2 needs both
    "torchvision",
    "numpy>=1.24",  # the code uses no alias that NumPy 1.24 or NumPy 2 removed
    "Pillow>=7.1",
    "matplotlib",
    "opencv-python",  # detectron2.utils.visualizer; upstream calls it optional
    "pycocotools>=2.0.2",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.11",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "PyYAML",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "packaging",
    "setuptools<82",  # detectron2.model_zoo imports pkg_resources, which setuptools 82 no longer has
)  # not `black`: detectron2.config.lazy uses it only where it is installed, to format a dumped config
COMPILED_SUFFIXES = frozenset({".so", ".pyd", ".dll", ".dylib", ".a", ".o"})
_ZIP_TIME = (2024, 4, 17, 0, 0, 0)  # the commit's date: the same input always gives the same file


class InstallError(Exception):
    """An error with a one-line message."""


def metadata(license_names: list[str]) -> str:
    """The text of the wheel's ``METADATA`` (core metadata 2.1)."""
    return "\n".join(
        [
            "Metadata-Version: 2.1",
            f"Name: {NAME}",
            f"Version: {VERSION}",
            "Summary: Detectron2 at upstream commit a59f0563, Python code only, without the compiled operators",
            "Home-page: https://github.com/facebookresearch/detectron2",
            "Author: FAIR",
            "License: Apache-2.0",
            "Requires-Python: >=3.8",
            *(f"License-File: {name}" for name in license_names),
            *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
            "",
            f"Repacked from {SOURCE} (sha256 {SOURCE_SHA256}). Changed against that file: no compiled operators, no",
            "top-level package `tools`, `detectron2.__version__`, and this metadata.",
            "",
        ]
    )


def repack(source: Path, folder: Path) -> Path:
    """Write the pure-Python ``detectron2`` wheel made from the wheel ``source`` into ``folder``; return its path.

    Kept are the files of the package ``detectron2`` that are not compiled and the licence files of the source.
    Raises ``InstallError`` where ``source`` is not a wheel with the package, its version string and a licence.
    """
    info = f"{NAME}-{VERSION}.dist-info"
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(source) as wheel:
            for entry in wheel.infolist():
                path = PurePosixPath(entry.filename)
                if entry.is_dir():
                    continue
                if path.parts[0] == NAME and path.suffix not in COMPILED_SUFFIXES:
                    files[str(path)] = wheel.read(entry)
                elif ".dist-info" in path.parts[0] and re.match(r"(LICEN[CS]E|NOTICE|COPYING)", path.name):
                    files[f"{info}/{path.name}"] = wheel.read(entry)
    except (OSError, zipfile.BadZipFile) as error:
        raise InstallError(f"{source}: not a readable wheel: {error}") from error
    licenses = sorted(PurePosixPath(name).name for name in files if name.startswith(info))
    if not licenses:
        raise InstallError(f"{source}: found no licence file in it, expected one in its .dist-info folder")
    init = f"{NAME}/__init__.py"
    version = f'__version__ = "{VERSION}"'.encode()
    files[init], replaced = re.subn(rb'(?m)^__version__ = ".*"$', version, files.get(init, b""))
    if replaced != 1:
        raise InstallError(f"{source}: {init} sets __version__ {replaced} times, expected once")

    files[f"{info}/METADATA"] = metadata(licenses).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: install_detectron2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/top_level.txt"] = f"{NAME}\n".encode()
    record = "".join(f"{name},sha256={_record_hash(data)},{len(data)}\n" for name, data in sorted(files.items()))
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()

    target = folder / f"{NAME}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in sorted(files.items(), key=lambda item: (item[0].startswith(info), item[0])):
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, data)
    return target


def download(folder: Path) -> Path:
    """Fetch the pinned file into ``folder`` with pip; return its path. Raises ``InstallError`` (network, hash)."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SOURCE} --hash=sha256:{SOURCE_SHA256}\n")
    # The file's tag is cp310-none-any: pip for a newer Python finds it only when it is told to look for that one.
    tag = ["--python-version", "3.10", "--implementation", "cp", "--abi", "none", "--platform", "any"]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(folder)]
    _pip(["download", *tag, *options, "-r", str(requirements)], f"fetch {SOURCE} from the package index")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise InstallError(f"pip download {SOURCE}: found {len(wheels)} wheels in its output, expected 1")
    return wheels[0]


def installed() -> str | None:
    """Version and place of the ``detectron2`` that this Python imports; None where it has none."""
    try:
        module = importlib.import_module(NAME)
    except ModuleNotFoundError as error:
        if error.name == NAME:
            return None
        raise InstallError(f"{NAME} is installed but cannot be imported: {error}") from error
    except Exception as error:
        raise InstallError(f"{NAME} is installed but cannot be imported: {error!r}") from error
    return f"{getattr(module, '__version__', 'of unknown version')} at {module.__path__[0]}"


def _record_hash(data: bytes) -> str:
    """SHA-256 as a wheel's RECORD writes it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _pip(arguments: list[str], purpose: str) -> None:
    """Run this Python's pip; where it fails, raise ``InstallError`` with the line of its output that says why."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    output = done.stdout + done.stderr
    if "DO NOT MATCH THE HASHES" in output:
        raise InstallError(f"could not {purpose}: its SHA-256 is not {SOURCE_SHA256}; the file was not installed")
    reasons = re.findall(r"(?m)^\s*ERROR: (.+)$|(No module named pip)", output)
    reason = "".join(reasons[-1]) if reasons else f"pip exited with code {done.returncode}"
    network = " (is there a network connection?)" if "from versions: none" in output else ""
    raise InstallError(f"could not {purpose}: {reason}{network}")


def main() -> int:
    argparse.ArgumentParser(
        description="Install Detectron2 into this Python from a pinned file on the package index, without a compiler. "
        "Does nothing where detectron2 can be imported already."
    ).parse_args()
    try:
        found = installed()
        if found is not None:
            print(f"detectron2 {found} is there already; nothing to do")
            return 0
        print(f"fetching {SOURCE}, and what Detectron2 needs where it is missing (torch is large) ...", flush=True)
        with tempfile.TemporaryDirectory() as name:
            wheel = repack(download(Path(name)), Path(name))
            _pip(["install", str(wheel)], f"install {wheel.name}")
        print(f"installed detectron2 {VERSION}, made from {SOURCE}")
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
