# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Ids in annotation and result files: 7, 7.0 and "7" are the same id."""

from __future__ import annotations

from collections.abc import Container
from typing import Any


def as_id(value: Any) -> int | str | None:
    """A video or image id: an integer (7.0 becomes 7) or text; None for other types."""
    if isinstance(value, str):
        return value
    return as_number(value)


def as_number(value: Any) -> int | None:
    """An integer, also if stored as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def find_id(value: Any, known: Container[Any]) -> int | str | None:
    """The id in the form in which ``known`` contains it, number or text; None if it contains neither."""
    found = as_id(value)
    if found is None or found in known:
        return found
    if isinstance(found, int):
        return str(found) if str(found) in known else None
    try:
        number = as_number(float(found))
    except ValueError:
        return None
    return number if number is not None and number in known else None
