# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Ids in annotation and result files: programs write 7, 7.0 and "7" and mean the same."""

from __future__ import annotations

from collections.abc import Container
from typing import Any


def as_id(value: Any) -> int | str | None:
    """An id of a video or image as it is: a whole number (7.0 is 7) or text; None for anything else."""
    if isinstance(value, str):
        return value
    return as_number(value)


def as_number(value: Any) -> int | None:
    """A whole number, also one that was written with a decimal point; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def find_id(value: Any, known: Container[Any]) -> int | str | None:
    """An id in the form that ``known`` has it in: a number that was written as text, or text as a number.

    None where it is not known in any form.
    """
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
