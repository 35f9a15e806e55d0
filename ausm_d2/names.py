# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""File names in the order that people mean, where numbers inside names compare as numbers, and which fit together."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath

# Suffixes of pictures that are frames.
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".ppm", ".pgm")

_DIGITS = re.compile(r"([0-9]+)")

Order = tuple[tuple[tuple[str | int, ...], ...], str]


def natural_order(name: str | PurePath) -> Order:
    """Sort key of a file name or path: ``frame_2.jpg`` comes before ``frame_10.jpg``, whether padded with zeros or not.

    Folders compare part by part, and the suffix only where the rest is equal.
    """
    path = PurePath(name)
    parts = (*path.parts[:-1], path.stem)
    return tuple(_pieces(part) for part in parts), str(name)


def _pieces(text: str) -> tuple[str | int, ...]:
    """Text, number, text, number, ..., text: places of one kind always compare with each other."""
    return tuple(int(piece) if i % 2 else piece for i, piece in enumerate(_DIGITS.split(text)))


def sorted_files(folder: str | os.PathLike[str], suffixes: Collection[str]) -> list[str]:
    """Names of the files in ``folder`` with one of the ``suffixes`` (lower case, with the dot), in natural order.

    Hidden files (``.name``, among them the ``._name`` that macOS leaves on other disks) are left out.
    """
    found = [entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(tuple(suffixes))]
    return sorted((name for name in found if not name.startswith(".")), key=natural_order)


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the folders in ``folder``, links to folders included, in natural order; hidden ones are left out."""
    found = (name for name in os.listdir(folder) if not name.startswith("."))
    return sorted((name for name in found if os.path.isdir(os.path.join(folder, name))), key=natural_order)


def files_below(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """All files in ``folder`` and below, also behind links to folders; a folder that is met again is not entered."""
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
    """The first two names that stand for one thing: only their suffix differs, or zeros before a number."""
    seen: dict[tuple[str | int, ...], str] = {}
    for name in names:
        pieces = _pieces(os.path.splitext(name)[0])
        if pieces in seen:
            return seen[pieces], name
        seen[pieces] = name
    return None


def numbering_shift(names: Collection[str], of: Collection[str]) -> int | None:
    """By how much the numbers of ``names`` are above those of ``of``, if all of them fit only when that is taken off.

    Names are without suffix; their last number counts. ``None``: they all fit as they are, or no shift makes them fit.
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
    """What comes before the last number of all ``names``, and those numbers; None where names differ otherwise."""
    pieces = [_pieces(name) for name in names]
    first = pieces[0]
    if len(first) < 3 or any(each[:-2] != first[:-2] or each[-1] != first[-1] for each in pieces):
        return None
    return (*first[:-2], first[-1]), {int(each[-2]) for each in pieces}
