# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""File names in the order that people mean: numbers inside names compare as numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import PurePath

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
