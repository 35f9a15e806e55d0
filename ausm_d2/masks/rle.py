# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""COCO run lengths, checked on the way in: pycocotools loops forever on run lengths that do not add up.

Shape shorthand:
    H, W: frame size in pixels
    N, M: numbers of masks
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ausm_d2.errors import UserError

# A mask as it is stored: COCO RLE ({"size": [H, W], "counts": bytes | str | list}), COCO polygons
# (list of flat x, y lists) or a decoded bool array (H, W).
StoredMask = dict | list | np.ndarray
Rle = dict[str, Any]  # {"size": [H, W], "counts": bytes | str}: compressed run lengths, column by column


def encode(mask: np.ndarray) -> Rle:
    """Run lengths, with ``counts`` as text so that they go into JSON, of a bool or uint8 (H, W) ``mask``."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: Rle) -> np.ndarray:
    """bool (H, W) of compressed run lengths."""
    return coco_mask.decode(rle).astype(bool)


def to_rle(mask: StoredMask | None, height: int, width: int) -> Rle | None:
    """Compressed run lengths of a mask in any of the forms it is stored in; ``None`` where there is none.

    Compressed run lengths are passed through: ``first_invalid`` checks many at once.

    Raises:
        ValueError: what is wrong with it, in a few words. The caller knows which file and entry it came from.
    """
    if isinstance(mask, dict) and mask.get("size") == [height, width] and isinstance(mask.get("counts"), str):
        return mask if mask["counts"] else None  # by far the most common form
    if isinstance(mask, np.ndarray):
        if mask.shape != (height, width):
            raise ValueError(f"mask of size {'x'.join(map(str, mask.shape))}, expected {height}x{width}")
        return encode(mask)
    if not mask:
        return None
    if isinstance(mask, list):
        return _polygons_to_rle(mask, height, width)
    if not isinstance(mask, dict) or "counts" not in mask:
        raise ValueError(f"expected null, run lengths (size, counts) or polygons, found {_shorten(mask)}")
    size = mask.get("size")
    if not isinstance(size, (list, tuple)) or [*size] != [height, width]:
        raise ValueError(f"size {_shorten(size)}, expected [{height}, {width}] (height, width of the video)")
    counts = mask["counts"]
    if not counts:
        return None
    if isinstance(counts, (list, tuple)):
        return _uncompressed_to_rle(counts, height, width)
    if not isinstance(counts, (str, bytes)):
        raise ValueError(f"counts is {type(counts).__name__}, expected text or a list of run lengths")
    return {"size": [height, width], "counts": counts}


def _uncompressed_to_rle(counts: Sequence[Any], height: int, width: int) -> Rle:
    try:
        total = sum(counts)
        if total != height * width or not isinstance(total, (int, np.integer)):
            raise ValueError(f"run lengths add up to {total} pixels, expected {height}x{width} = {height * width}")
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    except TypeError:
        raise ValueError(f"counts holds something that is no number: {_shorten(counts)}") from None
    except OverflowError:
        raise ValueError(f"counts holds a number that is no run length: {_shorten(counts)}") from None


def _polygons_to_rle(polygons: list, height: int, width: int) -> Rle:
    for polygon in polygons:
        numbers = isinstance(polygon, (list, tuple)) and all(isinstance(x, (int, float)) for x in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"expected polygons as lists of x, y pairs, three at least, found {_shorten(polygon)}")
    return coco_mask.merge(coco_mask.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width))


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def first_invalid(rles: Sequence[Rle]) -> int | None:
    """Index of the first of N compressed masks whose run lengths do not fill its frame exactly; ``None``: all do."""
    broken = measure(rles)[1]
    return int(np.argmax(broken)) if broken.any() else None


def areas(rles: Sequence[Rle | None]) -> np.ndarray:
    """Pixels of each mask, int64 (N,); 0 for ``None``."""
    result = np.zeros(len(rles), np.int64)
    present = [i for i, rle in enumerate(rles) if rle is not None]
    result[present] = measure([rle for rle in rles if rle is not None])[0]
    return result


def measure(rles: Sequence[Rle]) -> tuple[np.ndarray, np.ndarray]:
    """Areas and faults of compressed masks.

    Returns:
        int64 (N,): pixels of each mask.
        bool (N,): where run lengths are negative, do not add up to H * W, or are no run lengths at all.
    """
    batch = 256  # masks read together: few calls, and arrays that stay in the cache
    parts = [_measure(rles[first : first + batch]) for first in range(0, len(rles), batch)]
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, bool)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _numbers(digits: np.ndarray, ends: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The numbers, int64, of compressed counts, given the places of their last digits and how many digits each has.

    Compressed counts are in base 32, six bits a character, the lowest digit first, the sign in the highest; from
    the fourth number of a mask on each is a difference to the number two before it.
    """
    numbers = (digits[ends] & 31).astype(np.int64)
    numbers -= (numbers & 16) << 1
    back, wider = 1, np.flatnonzero(widths > 1)
    while len(wider):
        numbers[wider] = (numbers[wider] << 5) | (digits[ends[wider] - back] & 31)
        back += 1
        wider = wider[widths[wider] > back]
    return numbers


def _measure(rles: Sequence[Rle]) -> tuple[np.ndarray, np.ndarray]:
    """``measure`` of one batch; a few array operations read all N masks at once."""
    texts = [rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"] for rle in rles]
    text_ends = np.cumsum([len(text) for text in texts]) - 1
    digits = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(48)
    is_end = digits < 32  # the last, highest digit of a number
    ends = np.flatnonzero(is_end)
    widths = np.diff(ends, prepend=-1)  # digits of each number
    unreadable = np.maximum.reduceat(digits, np.concatenate([[0], text_ends[:-1] + 1])) >= 64
    unreadable |= ~is_end[text_ends]
    unreadable[np.searchsorted(text_ends, ends[widths > 7])] = True  # 34 bits: more than any frame has pixels
    if unreadable.any():
        return np.zeros(len(rles), np.int64), unreadable

    numbers = _numbers(digits, ends, widths)
    stops = np.searchsorted(ends, text_ends) + 1  # one past the numbers of each mask
    starts = np.concatenate([[0], stops[:-1]])
    totals = numbers[starts]
    negative = totals < 0
    numbers[starts] = 0  # no other number refers to a mask's first, which is of background
    foreground = np.zeros(len(rles), np.int64)
    for parity in (0, 1):
        # Every second number, of all masks in a row: run lengths are sums from the mask's first number on.
        sums = np.concatenate([[0], np.cumsum(numbers[parity::2])])
        first, last = (starts + 1 - parity) // 2, (stops + 1 - parity) // 2
        bounds = np.append(first + 1, len(sums))  # the one too many keeps the last mask from the padding
        padded = np.append(sums, 0)
        above, any_here = sums[first], last > first
        of_runs = np.where(any_here, np.add.reduceat(padded, bounds)[:-1] - (last - first) * above, 0)
        totals += of_runs
        foreground += np.where(starts % 2 == parity, 0, of_runs)
        negative |= any_here & (np.minimum.reduceat(padded, bounds)[:-1] < above)
    return foreground, negative | (totals != [rle["size"][0] * rle["size"][1] for rle in rles])


def intersections(rows: Sequence[Rle], row_areas: np.ndarray, columns: Sequence[Rle]) -> np.ndarray:
    """Pixels that every mask of ``rows`` (N, with their areas) shares with every one of ``columns`` (M): int64 (N, M).

    Neither may be empty.
    """
    # Against a "crowd" pycocotools divides by the area of the row alone, so that the count comes back exactly.
    shares = coco_mask.iou(rows, columns, [1] * len(columns))
    return np.rint(shares * row_areas[:, None]).astype(np.int64)


def cut_out(mask: StoredMask, size: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """The part of a stored mask that holds all of it.

    Args:
        mask: anything but polygons; run lengths must fill the frame.
        size: (H, W) that it must have.

    Returns:
        The part, uint8 of 0 and 255, columns first (width, height) as run lengths go; its first column; its first row.
        It is empty where no pixel is set.

    Raises:
        UserError: no mask, or one of another size.
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
    lengths[0] -= x * size[0]  # of background, as every other one
    if len(lengths) % 2:
        lengths[-1] -= (size[1] - x - width) * size[0]
    values = np.zeros(len(lengths), np.uint8)
    values[1::2] = 255
    return np.repeat(values, lengths).reshape(width, size[0])[:, y : y + height], x, y


def _run_lengths(counts: str | bytes) -> np.ndarray:
    """Run lengths, int64, background first, of compressed counts."""
    digits = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8) - np.uint8(48)
    ends = np.flatnonzero(digits < 32)
    numbers = _numbers(digits, ends, np.diff(ends, prepend=-1))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
