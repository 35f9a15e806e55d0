# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""File names: natural order, listing of folders, matching of numbered names."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath

# Suffixes of image files that are read as frames.
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".ppm", ".pgm")

_DIGITS = re.compile(r"(\d+)")  # of any script

Order = tuple[tuple[tuple[str | int, ...], ...], str]


def natural_order(name: str | PurePath) -> Order:
    """Sort key of a file name or path: ``frame_2.jpg`` sorts before ``frame_10.jpg``, with or without zero padding.

    Folders are compared part by part, suffixes only if the rest is equal.
    """
    path = PurePath(name)
    parts = (*path.parts[:-1], path.stem)
    return tuple(_pieces(part) for part in parts), str(name)


def _pieces(text: str) -> tuple[str | int, ...]:
    """Alternating text and numbers, beginning and ending with text, so that entries of one type are compared."""
    # Python refuses to read numbers of more than 4300 digits; no file has such a name, but a list of files may.
    return tuple(int(piece[:1000]) if i % 2 else piece for i, piece in enumerate(_DIGITS.split(text)))


def sorted_files(folder: str | os.PathLike[str], suffixes: Collection[str]) -> list[str]:
    """Names of the files in ``folder`` with one of the ``suffixes`` (lower case, with the dot), in natural order.

    Hidden files are left out (``.name``, including macOS's ``._name``).
    """
    found = [entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(tuple(suffixes))]
    return sorted((name for name in found if not name.startswith(".")), key=natural_order)


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the folders in ``folder``, including links, in natural order; hidden ones are left out."""
    found = (name for name in os.listdir(folder) if not name.startswith("."))
    return sorted((name for name in found if os.path.isdir(os.path.join(folder, name))), key=natural_order)


def files_below(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """All files below ``folder``, following links; each folder is visited once."""
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort(key=natural_order)
        for name in sorted(files, key=natural_order):
            yield Path(root, name)


def repeated(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that differ only in suffix or zero padding; None if there are none."""
    seen: dict[tuple[str | int, ...], str] = {}
    for name in names:
        pieces = _pieces(os.path.splitext(name)[0])
        if pieces in seen:
            return seen[pieces], name
        seen[pieces] = name
    return None


def several_series(names: Collection[str]) -> list[str]:
    """The first name of every series, if there are several; names of one series differ in numbers only.

    Names without suffix. Names that all differ otherwise are no series.
    """
    first: dict[tuple[str | int, ...], str] = {}
    for name in names:
        first.setdefault(_pieces(name)[::2], name)
    return list(first.values()) if 1 < len(first) < len(names) else []


def numbering_shift(names: Collection[str], of: Collection[str]) -> int | None:
    """The constant difference between the numbers of ``names`` and those of ``of``.

    Names are without suffix; their last number is compared. ``None``: they match without a shift, or no shift makes
    them match.
    """
    if set(names) <= set(of) or not names or not of:
        return None
    numbers, wanted = _last_numbers(names), _last_numbers(of)
    if numbers is None or wanted is None or numbers[0] != wanted[0]:
        return None
    for shift in (min(numbers[1]) - min(wanted[1]), max(numbers[1]) - max(wanted[1])):
        if shift and {number - shift for number in numbers[1]} <= wanted[1]:
            return shift
    return None


def _last_numbers(names: Collection[str]) -> tuple[tuple[str | int, ...], set[int]] | None:
    """The common part of all ``names``, and their last numbers; None if they differ elsewhere."""
    pieces = [_pieces(name) for name in names]
    first = pieces[0]
    if len(first) < 3 or any(each[:-2] != first[:-2] or each[-1] != first[-1] for each in pieces):
        return None
    return (*first[:-2], first[-1]), {int(each[-2]) for each in pieces}
