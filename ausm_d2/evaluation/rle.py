# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""COCO run lengths, checked on the way in: pycocotools loops forever on run lengths that do not add up.

Shape shorthand:
    H, W: frame size in pixels
    N, M: numbers of masks
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask

if TYPE_CHECKING:
    from ausm_d2.data.video import StoredMask

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
        runs = [int(run) for run in counts]
    except (TypeError, ValueError):
        raise ValueError(f"counts holds something that is no number: {_shorten(counts)}") from None
    if min(runs) < 0 or sum(runs) != height * width:
        raise ValueError(f"run lengths add up to {sum(runs)} pixels, expected {height}x{width} = {height * width}")
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


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
    batch = 64  # masks read together: few calls, and arrays that stay in the cache
    for first in range(0, len(rles), batch):
        broken = _invalid(rles[first : first + batch])
        if broken.any():
            return first + int(np.argmax(broken))
    return None


def _invalid(rles: Sequence[Rle]) -> np.ndarray:
    """bool (N,): where run lengths are negative, do not add up to H * W, or are no run lengths at all.

    Compressed counts are numbers in base 32, six bits a character, the lowest digit first; from the fourth number on
    each is a difference to the number two before it. A few array operations read all N at once.
    """
    texts = [rle["counts"] for rle in rles]
    texts = [text.encode() if isinstance(text, str) else text for text in texts]
    pixels = np.array([rle["size"][0] * rle["size"][1] for rle in rles])
    text_ends = np.cumsum([len(text) for text in texts]) - 1
    text_starts = np.concatenate([[0], text_ends[:-1] + 1])
    chars = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(48)
    is_end = (chars & 0x20) == 0  # the last character of a number
    ends = np.flatnonzero(is_end)
    widths = np.diff(ends, prepend=-1)  # characters of each number
    unreadable = np.logical_or.reduceat(chars >= 64, text_starts) | ~is_end[text_ends]
    if unreadable.any() or widths.max() > 7:  # 7 characters: 34 bits, more than any frame has pixels
        too_wide = np.isin(np.arange(len(texts)), np.searchsorted(text_ends, ends[widths > 7]))
        return unreadable | too_wide

    numbers = (chars[ends] & 0x1F).astype(np.int64)
    numbers -= (numbers & 0x10) << 1  # the sign is in the highest digit
    for back in range(1, int(widths.max())):
        wider = np.flatnonzero(widths > back)
        numbers[wider] = (numbers[wider] << 5) | (chars[ends[wider] - back] & 0x1F)

    # Two columns, each mask from a row of its own: the differences run down a column. Counted from the value above a
    # mask (in column 0 its own first row, because no difference refers to the first number), sums down are run lengths.
    numbers_after = np.searchsorted(ends, text_ends) + 1
    amounts = np.diff(numbers_after, prepend=0)
    rows = (amounts + 1) // 2
    first_rows = np.cumsum(rows) - rows
    table = np.zeros((int(rows.sum()), 2), np.int64)
    table.flat[np.arange(len(numbers)) + np.repeat(2 * first_rows - (numbers_after - amounts), amounts)] = numbers
    sums = np.cumsum(table, axis=0)
    above = sums[first_rows] - table[first_rows] * [0, 1]
    first_runs = table[first_rows, 0]
    negative = (np.minimum.reduceat(sums, first_rows) < above).any(axis=1) | (first_runs < 0)
    totals = (np.add.reduceat(sums, first_rows) - rows[:, None] * above).sum(axis=1) + first_runs
    filler = np.where(amounts % 2, (sums[first_rows + rows - 1] - above)[:, 1], 0)  # an odd amount leaves a cell over
    return negative | (totals - filler != pixels)


def areas(rles: Sequence[Rle | None]) -> np.ndarray:
    """Pixels of each mask, int64 (N,); 0 for ``None``."""
    result = np.zeros(len(rles), np.int64)
    present = [i for i, rle in enumerate(rles) if rle is not None]
    for first in range(0, len(present), 255):  # pycocotools counts the masks of one call in 8 bits
        chunk = present[first : first + 255]
        result[chunk] = coco_mask.area([rles[i] for i in chunk])
    return result


def intersections(rows: Sequence[Rle], columns: Sequence[Rle]) -> np.ndarray:
    """Pixels that every mask of ``rows`` (N) shares with every mask of ``columns`` (M): int64 (N, M)."""
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)), np.int64)
    # Against a "crowd" pycocotools divides by the area of the row alone, so that the count comes back exactly.
    shares = coco_mask.iou(list(rows), list(columns), [1] * len(columns))
    return np.rint(shares * areas(rows)[:, None]).astype(np.int64)
