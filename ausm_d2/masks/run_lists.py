# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""JSON files that are, nearly all of them, lists of run lengths: those are read at once, without an object for each.

Shape shorthand:
    N: numbers in the lists
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from array import array
from itertools import count
from typing import Any

import numpy as np

from ausm_d2.io import read_json

_OPENING = re.compile(rb'"counts"\s*:\s*\[')
_BATCH = 1 << 19  # characters read together: arrays that stay in the cache


def read_json_with_masks(path: str | os.PathLike[str]) -> Any:
    """``read_json``; a list in a field ``counts`` becomes a ``uint32`` array where it holds such numbers only.

    Raises:
        UserError: it is missing or no JSON.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError), open(path, "rb") as file:
        return _read(file.read().removeprefix(b"\xef\xbb\xbf"))
    return read_json(path, object_hook=_with_array)  # slower, takes what there is, and explains what is wrong


def _with_array(entry: dict[str, Any]) -> dict[str, Any]:
    if isinstance(entry.get("counts"), list):
        with contextlib.suppress(TypeError, OverflowError):
            entry["counts"] = np.frombuffer(array("I", entry["counts"]), np.uint32)
    return entry


def _read(text: bytes) -> Any:
    """
    Raises:
        ValueError: it is no JSON, or not what is read here.
    """
    lists: list[bytes] = []
    rest: list[bytes] = []  # the text without the lists: in place of each stands its number
    end = 0
    while opening := _OPENING.search(text, end):
        begin = opening.end()
        rest.append(b"%b%d" % (text[end:begin], len(lists)))
        end = text.find(b"]", begin)
        if end < 0:
            raise ValueError("a list without an end")
        lists.append(text[begin:end].strip())
    if not lists:
        return json.loads(text.decode())
    rest.append(text[end:])
    arrays = _arrays(lists)
    places = count()

    def put_back(entry: dict[str, Any]) -> dict[str, Any]:
        if isinstance(entry.get("counts"), list):
            if entry["counts"] != [next(places)]:
                raise ValueError("a list that was not taken out")
            entry["counts"] = arrays.pop()
        return entry

    arrays.reverse()
    data = json.loads(b"".join(rest).decode(), object_hook=put_back)
    if arrays:
        raise ValueError("a list that was taken out of something else")
    return data


def _arrays(lists: list[bytes]) -> list[np.ndarray]:
    """The numbers of each list."""
    arrays: list[np.ndarray] = []
    while len(arrays) < len(lists):
        size, batch = 0, []
        for text in lists[len(arrays) :]:
            batch.append(text)
            size += len(text)
            if size > _BATCH:
                break
        numbers, ends = _numbers(b",".join(batch))
        bounds = np.searchsorted(ends, np.cumsum([len(text) + 1 for text in batch]))
        if np.diff(bounds, prepend=0).min() == 0:
            raise ValueError("an empty list")
        arrays += np.split(numbers, bounds[:-1])
    return arrays


def _numbers(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers with commas between them.

    Returns:
        uint32 (N,), and where each ends in the text (N,).

    Raises:
        ValueError: anything else.
    """
    characters = np.frombuffer(b" " * 8 + text + b" ", np.uint8)
    is_digit = characters - np.uint8(48) < 10
    bounds = np.flatnonzero(is_digit[1:] != is_digit[:-1]) + 1
    starts, ends = bounds[::2], bounds[1::2]
    widths = ends - starts
    is_comma = characters == ord(",")
    num_commas, num_digits = np.count_nonzero(is_comma), int(widths.sum())
    blanks = characters == ord(" ")
    if num_digits + num_commas + np.count_nonzero(blanks) < len(characters):
        blanks = np.isin(characters, np.frombuffer(b" \t\r\n", np.uint8))
    # As many commas as gaps, each gap begins with one: each has one.
    if (
        num_digits + num_commas + np.count_nonzero(blanks) != len(characters)
        or num_commas + 1 != len(ends)
        or not is_comma[ends[:-1]].all()
        or widths.max() > 8
    ):
        raise ValueError("no list of whole numbers of up to eight digits")
    # The eight characters up to each end, the last in the highest byte; what is before the number becomes 0.
    window = np.ndarray(len(characters) - 7, "<u8", characters, strides=(1,))[ends - 8]
    unused = (64 - 8 * widths).astype(np.uint64)
    window = (window >> unused) << unused & np.uint64(0x0F0F0F0F0F0F0F0F)
    # Digits become pairs, fours, and the number.
    for factor, bits, mask in ((10, 8, 0x00FF00FF00FF00FF), (100, 16, 0x0000FFFF0000FFFF), (10000, 32, 0xFFFFFFFF)):
        window = window * np.uint64(factor) + (window >> np.uint64(bits)) & np.uint64(mask)
    return window.astype(np.uint32), ends - 8
