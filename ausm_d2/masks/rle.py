# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""COCO run-length encoding (RLE): conversion, checks, areas and overlaps.

Run lengths are checked before use, because pycocotools loops forever on invalid ones.

Shape shorthand:
    H, W: frame size in pixels
    N, M: numbers of masks
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ausm_d2.errors import UserError
from ausm_d2.io import read_json

# A stored mask: COCO RLE ({"size": [H, W], "counts": bytes | str | list}), COCO polygons
# (list of flat x, y lists) or a decoded bool array (H, W).
StoredMask = dict | list | np.ndarray
FARTHEST = 1e6  # pixels: coordinates of polygons beyond it are refused
Rle = dict[str, Any]  # {"size": [H, W], "counts": bytes | str}: compressed run lengths, column by column


def encode(mask: np.ndarray) -> Rle:
    """Encode a bool or uint8 (H, W) mask; ``counts`` is text, for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: Rle) -> np.ndarray:
    """Decode compressed run lengths to bool (H, W)."""
    return coco_mask.decode(rle).astype(bool)


def read_json_with_masks(path: str | os.PathLike[str]) -> Any:
    """``read_json`` that stores integer lists in ``counts`` as ``uint32`` arrays, with a tenth of the memory.

    Raises:
        UserError: if the file is missing or not valid JSON.
    """
    return read_json(path, object_hook=_with_array)


def _with_array(entry: dict[str, Any]) -> dict[str, Any]:
    counts = entry.get("counts")
    if isinstance(counts, list) and counts:
        with contextlib.suppress(TypeError, OverflowError):
            entry["counts"] = np.frombuffer(array("I", counts), np.uint32)
    return entry


def to_rle(mask: StoredMask | None, height: int, width: int) -> Rle | None:
    """Convert a stored mask to compressed run lengths; ``None`` for an absent mask.

    Compressed run lengths are returned unchecked: ``first_invalid`` checks many at once.

    Raises:
        ValueError: if it is invalid. The caller adds file and entry to the message.
    """
    if isinstance(mask, dict) and mask.get("size") == [height, width] and isinstance(mask.get("counts"), str):
        return mask if mask["counts"] else None  # by far the most common case
    if isinstance(mask, np.ndarray):
        if mask.shape != (height, width):
            raise ValueError(f"mask of size {'x'.join(map(str, mask.shape))}, expected {height}x{width}")
        return encode(mask)
    if mask is None or (isinstance(mask, (dict, list)) and not mask):
        return None
    if isinstance(mask, list):
        return _polygons_to_rle(mask, height, width)
    if not isinstance(mask, dict) or "counts" not in mask:
        raise ValueError(f"expected null, run lengths (size, counts) or polygons, found {_shorten(mask)}")
    size = mask.get("size")
    if not isinstance(size, (list, tuple)) or [*size] != [height, width]:
        raise ValueError(f"size {_shorten(size)}, expected [{height}, {width}] (height, width of the video)")
    counts = mask["counts"]
    if isinstance(counts, (list, tuple, np.ndarray)):
        return _uncompressed_to_rle(counts, height, width) if len(counts) else None
    if counts is None or counts in ("", b""):
        return None
    if not isinstance(counts, (str, bytes)):
        raise ValueError(f"counts is {type(counts).__name__}, expected text or a list of run lengths")
    return {"size": [height, width], "counts": counts}


def _uncompressed_to_rle(counts: Sequence[Any] | np.ndarray, height: int, width: int) -> Rle:
    runs = counts if isinstance(counts, np.ndarray) and counts.dtype == np.uint32 else _run_array(counts)
    total = int(runs.sum())
    if total != height * width:
        raise ValueError(f"run lengths add up to {total} pixels, expected {height}x{width} = {height * width}")
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def _run_array(counts: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Run lengths as uint32."""
    try:
        try:
            return np.frombuffer(array("I", counts), np.uint32)
        except TypeError:
            return np.frombuffer(array("I", map(_whole, counts)), np.uint32)
    except (TypeError, ValueError):
        raise ValueError(f"counts holds something that is no whole number: {_shorten(counts)}") from None
    except OverflowError:
        raise ValueError(f"counts holds a number that is no run length: {_shorten(counts)}") from None


def _whole(number: Any) -> int:
    """An integer from text or float."""
    value = float(number)
    if not value.is_integer():
        raise ValueError
    return int(value)


def _polygons_to_rle(polygons: list, height: int, width: int) -> Rle:
    for polygon in polygons:
        # pycocotools walks along the polygon pixel by pixel: coordinates far outside would take forever.
        numbers = isinstance(polygon, (list, tuple)) and all(
            isinstance(x, (int, float)) and -FARTHEST < x < FARTHEST for x in polygon
        )
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"expected polygons as lists of x, y pairs, three at least, found {_shorten(polygon)}")
    return coco_mask.merge(coco_mask.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width))


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def first_invalid(rles: Sequence[Rle]) -> int | None:
    """Index of the first of N compressed masks whose run lengths do not add up to H * W; ``None`` if all do."""
    broken = measure(rles).broken
    return int(np.argmax(broken)) if broken.any() else None


class Measures(NamedTuple):
    """Areas and extents of N masks, in pixels counted column by column."""

    areas: np.ndarray  # int64 (N,)
    starts: np.ndarray  # int64 (N,): no foreground pixel before this index
    stops: np.ndarray  # int64 (N,): no foreground pixel from this index on
    broken: np.ndarray  # bool (N,): the run lengths are unreadable, negative or do not add up to H * W

    def part(self, which: slice) -> Measures:
        """The measurements of a slice of the masks."""
        return Measures(*(field[which] for field in self))


def measure(rles: Sequence[Rle | None]) -> Measures:
    """Measure N compressed masks; 0 for ``None``, and possibly for broken masks and others of their batch."""
    result = _unmeasured(np.zeros(len(rles), bool))
    present = [index for index, rle in enumerate(rles) if rle is not None]
    batch = 256  # masks per batch: few NumPy calls, arrays that fit into the cache
    for first in range(0, len(present), batch):
        places = present[first : first + batch]
        for field, values in zip(result, _measure([rles[place] for place in places]), strict=True):  # type: ignore[misc]
            field[places] = values
    return result


def _unmeasured(broken: np.ndarray) -> Measures:
    areas, starts, stops = np.zeros((3, len(broken)), np.int64)
    return Measures(areas, starts, stops, broken)


def _digits(texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Compressed counts of N masks, concatenated: digits, uint8, and the index of each mask's last digit, (N,).

    A digit has five bits; a sixth bit, 32, marks that its number continues. The lowest digit comes first; the highest
    holds the sign. From the fourth number of a mask on, each is the difference to the number two places earlier.
    """
    # Any text that JSON can hold; characters that are no digits are detected later.
    parts = [text.encode(errors="surrogatepass") if isinstance(text, str) else text for text in texts]
    digits = np.frombuffer(b"".join(parts), np.uint8) - np.uint8(48)
    return digits, np.cumsum([len(part) for part in parts]) - 1


def _numbers(digits: np.ndarray) -> np.ndarray:
    """Decode the numbers; int32 if no sum of them can overflow, else int64."""
    is_last = digits < 32
    highest = ((digits[is_last] & 31) ^ 16).view(np.int8) - np.int8(16)
    # Nearly all numbers have one digit; only the others are assembled digit by digit.
    lower = np.flatnonzero(~is_last)
    numbers_before = lower - np.arange(len(lower))
    firsts = np.flatnonzero(np.diff(numbers_before, prepend=-1))
    # Indices of these numbers, and how many lower digits each has.
    wide, widths = numbers_before[firsts], np.diff(firsts, append=len(lower))
    values = highest[wide].astype(np.int64) << 5 * widths
    for place in range(int(widths.max(initial=0))):
        has = np.flatnonzero(widths > place)
        values[has] |= (digits[lower[firsts[has] + place]] & 31).astype(np.int64) << 5 * place
    fits = np.abs(values).sum() + 16 * len(highest) < 2**31
    numbers = highest.astype(np.int32 if fits else np.int64)
    numbers[wide] = values
    return numbers


def _measure(rles: Sequence[Rle]) -> Measures:
    """``measure`` for one batch, vectorised over all N masks."""
    digits, text_ends = _digits([rle["counts"] for rle in rles])
    lower = np.flatnonzero(digits >= 32)  # digits after which their number continues
    unreadable = np.maximum.reduceat(digits, np.concatenate([[0], text_ends[:-1] + 1])) >= 64
    unreadable |= digits[text_ends] >= 32
    # More than 7 digits (34 bits and sign): more pixels than any frame has.
    unreadable[np.searchsorted(text_ends, lower[6:][lower[6:] - lower[:-6] == 6])] = True
    if unreadable.any():
        return _unmeasured(unreadable)

    numbers = _numbers(digits)
    ends = text_ends + 1 - np.searchsorted(lower, text_ends)  # one past the last number of each mask
    begins = np.concatenate([[0], ends[:-1]])
    starts = numbers[begins].astype(np.int64)
    totals, negative = starts.copy(), starts < 0
    numbers[begins] = 0  # the first run, background; no other number is a difference to it
    pixels = np.array([rle["size"][0] * rle["size"][1] for rle in rles])
    areas, stops = np.zeros((2, len(rles)), np.int64)
    for parity in (0, 1):
        # Every second number of all masks: run lengths are cumulative sums from the mask's first number.
        of_parity = numbers[parity::2]
        sums = np.zeros(len(of_parity) + 2, numbers.dtype)  # one extra, to end the last mask
        np.cumsum(of_parity, out=sums[1:-1])
        first, last = (begins + 1 - parity) // 2, (ends + 1 - parity) // 2
        bounds = np.append(first + 1, len(sums) - 1)
        above, any_here = sums[first].astype(np.int64), last > first
        of_runs = np.add.reduceat(sums, bounds, dtype=np.int64)[:-1] - (last - first) * above
        of_runs[~any_here] = 0
        totals += of_runs
        negative |= any_here & (np.minimum.reduceat(sums, bounds)[:-1] < above)
        background = begins % 2 == parity
        areas[~background] = of_runs[~background]
        ends_so = background & (ends % 2 != parity)  # the mask's last run is background
        stops[background] = pixels[background]
        stops[ends_so] -= (sums[last] - above)[ends_so]
    return Measures(areas, starts, stops, negative | (totals != pixels))


_EMPTY_MASK: Rle = {"size": [1, 1], "counts": "1"}  # its size is never compared


def intersections(rows: Sequence[Rle | None], row_areas: np.ndarray, columns: Sequence[Rle | None]) -> np.ndarray:
    """Intersections in pixels of ``rows`` (N masks with their areas) and ``columns`` (M masks): int64 (N, M).

    N and M must be at least 1.
    """
    # With "crowd" columns pycocotools divides by the row's area alone, so that the count can be recovered exactly.
    shares = coco_mask.iou(
        [rle or _EMPTY_MASK for rle in rows], [rle or _EMPTY_MASK for rle in columns], [1] * len(columns)
    )
    return np.rint(shares * row_areas[:, None]).astype(np.int64)


def cut_out(mask: StoredMask, size: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Crop a stored mask to its bounding box.

    Args:
        mask: not polygons; run lengths must add up to H * W.
        size: expected (H, W).

    Returns:
        The crop, uint8 of 0 and 255, transposed (width, height) as in run lengths; its first column; its first row.
        The crop is empty if no pixel is set.

    Raises:
        UserError: if the mask is invalid or has another size.
    """
    if isinstance(mask, np.ndarray):
        if mask.shape != size:
            raise UserError(f"a mask of {mask.shape} in a frame of {size} (height, width)")
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        return mask[y : y + height, x : x + width].T * np.uint8(255), x, y
    try:
        rle = to_rle(mask, *size)
    except ValueError as error:
        raise UserError(f"a mask that cannot be read: {error}") from None
    x, y, width, height = (int(side) for side in coco_mask.toBbox(rle)) if rle else (0, 0, 0, 0)
    if rle is None or not width:
        return np.empty((0, 0), np.uint8), 0, 0
    lengths = _run_lengths(rle["counts"])
    lengths[0] -= x * size[0]  # background
    if len(lengths) % 2:
        lengths[-1] -= (size[1] - x - width) * size[0]
    values = np.zeros(len(lengths), np.uint8)
    values[1::2] = 255
    return np.repeat(values, lengths).reshape(width, size[0])[:, y : y + height], x, y


def _run_lengths(counts: str | bytes) -> np.ndarray:
    """Decode compressed counts to run lengths, int64, background first."""
    numbers = _numbers(_digits([counts])[0]).astype(np.int64)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
