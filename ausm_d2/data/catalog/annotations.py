# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads and validates annotation files in COCO and YouTube-VIS format, entry by entry."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ausm_d2.data.problems import LeftOut, collecting, mismatch, problem
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.ids import as_id, as_number
from ausm_d2.io import read_json
from ausm_d2.masks.rle import FARTHEST, StoredMask, first_invalid, to_rle
from ausm_d2.pictures import MAX_PIXELS


def read_table(path: Path) -> dict[str, Any]:
    """The top level of a COCO or YouTube-VIS file.

    Raises:
        UserError: if it cannot be read, or is not a JSON object.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: a {type(data).__name__} found; an object with 'categories' and others expected")
    return data


_shared: dict[Path, dict[str, Any]] | None = None  # what read_shared_table has read in a context of shared_tables


@contextmanager
def shared_tables() -> Iterator[None]:
    """A context in which :func:`read_shared_table` reads each file once, so that its data sets share the polygons.

    COCO's take 2 GB of memory, and five data sets of stages 2 and 3 are made of its file.
    """
    global _shared
    before, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = before


def read_shared_table(path: Path) -> dict[str, Any]:
    """As :func:`read_table`, for a file shared by several data sets. Do not modify the result: it is shared."""
    if _shared is None:
        return read_table(path)
    if path not in _shared:
        _shared[path] = read_table(path)
    return _shared[path]


def entries(path: Path, data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The list of objects under ``name``.

    Raises:
        UserError: if there is no such list.
    """
    value = data.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        found = "nothing" if value is None else type(value).__name__
        raise UserError(f"{path}: field {name!r}: {found} found, a list of objects expected")
    return value


def read_categories(path: Path, data: dict[str, Any]) -> dict[int, str]:
    """Category names by id. Categories with the same name are kept apart."""
    categories: dict[int, str] = {}
    for i, entry in enumerate(entries(path, data, "categories")):
        category_id = as_number(entry.get("id"))
        if category_id is None or category_id < 0 or category_id in categories:
            problem(f"{path}: categories[{i}].id: {entry.get('id')!r} found, a unique number, 0 or more, expected")
            continue
        categories[category_id] = str(entry.get("name", category_id))
    for name, count in Counter(categories.values()).items():
        if count > 1:
            of_name = [category_id for category_id, each in categories.items() if each == name]
            mismatch(f"{path} categories", f"{path}: {count} categories have the name {name!r} (ids {of_name})")
    return categories


def require_categories(path: Path, found: Mapping[int, str], expected: Mapping[int, str], name: str) -> None:
    """Check that a file has the data set's known categories; case and punctuation of the names are ignored.

    Raises:
        UserError: if it has not; otherwise all labels would be wrong without notice.
    """
    for category_id, class_name in expected.items():
        if _plain(found.get(category_id, "")) != _plain(class_name):
            raise UserError(
                f"{path}: field 'categories': id {category_id} is {found.get(category_id)!r}, {class_name!r} expected "
                f"for {name}; is this the file of another data set?"
            )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def read_id(where: str, value: Any) -> int | str | None:
    """The id of a video or an image, an integer or text. Anything else is reported, and None is returned."""
    found = as_id(value)
    if found is None:
        problem(f"{where}: {value!r} found, a whole number or text expected")
    return found


def read_new_number(where: str, value: Any, seen: set[int]) -> int | None:
    """An integer that is not in ``seen``; it is added to ``seen``. Anything else is reported, and None is returned."""
    number = as_number(value)
    if number is None or number in seen:
        problem(f"{where}.id: {value!r} found, a unique number expected")
        return None
    seen.add(number)
    return number


def read_crowd(where: str, entry: dict[str, Any]) -> bool:
    """The field ``iscrowd``: 0 (also if it is missing or null) or 1. Anything else is reported."""
    value = entry.get("iscrowd") or 0
    if isinstance(value, str) or value not in (0, 1):
        problem(f"{where}.iscrowd: {value!r} found, 0 or 1 expected")
    return value == 1


def read_pixels(where: str, entry: dict[str, Any], of: str) -> tuple[int, int] | None:
    """Height and width of a video or an image. An invalid size is reported, and None is returned."""
    sides = [as_number(entry.get(side)) for side in ("height", "width")]
    for name, side in zip(("height", "width"), sides, strict=True):
        if side is None or side <= 0:
            problem(f"{where}.{name} ({of}): {entry.get(name)!r} found, pixels expected")
            return None
    height, width = sides
    assert height is not None and width is not None
    if height * width > MAX_PIXELS:
        problem(f"{where} ({of}): {height} x {width} pixels, {MAX_PIXELS // 10**6} million at most expected")
        return None
    return height, width


def read_mask(where: str, mask: Any, height: int, width: int, left_out: LeftOut) -> StoredMask | None:
    """A mask of an annotation file: valid polygons are kept as polygons, run lengths are compressed.

    Polygons of fewer than three points are left out, as in Detectron2. None if nothing remains.
    """
    if not isinstance(mask, list):
        try:
            return to_rle(mask, height, width)
        except ValueError as error:
            problem(f"{where}: {error}")
            return None
    polygons = []
    for polygon in mask:
        if not isinstance(polygon, list) or not _finite(polygon):
            problem(f"{where}: a polygon of finite numbers x, y, x, y, ... expected")
            return None
        if polygon and not -FARTHEST < min(polygon) <= max(polygon) < FARTHEST:
            problem(f"{where}: a polygon {FARTHEST:.0f} pixels away or more")
            return None
        if len(polygon) >= 6 and len(polygon) % 2 == 0:
            polygons.append(polygon)
        else:
            left_out.add("polygons without three points")
    return polygons or None


def check_boxes(boxes: Any, left_out: LeftOut) -> None:
    """Count boxes with values that are not finite numbers. Boxes are not used, so they are only counted."""
    if not isinstance(boxes, list):
        boxes = [boxes]
    for box in boxes:
        if box is not None and not (isinstance(box, list) and _finite(box)):
            left_out.add("boxes that hold no finite numbers (masks are used, not boxes)")


def keep_areas(record: VideoRecord, instance_id: int, areas: Any, left_out: LeftOut) -> None:
    """Store the areas (pixels, per frame) that a file gives for an instance; AP by size uses them, not the masks."""
    if areas is None:
        return
    if isinstance(areas, list) and len(areas) == record.length and all(map(_is_area, areas)):
        record.extra.setdefault("areas", {})[instance_id] = areas
    else:
        left_out.add("areas that are not one number for each frame (those of the masks stand for them)")


def _is_area(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value < math.inf)


def report_twins(where: str, entry: dict[str, Any], masks: Any, seen: dict[str, int], place: int) -> None:
    """Report an annotation with the class and masks of an earlier one of its video, while a data set is checked.

    Args:
        masks: as they are stored.
        seen: places of the earlier annotations; added to.
        place: of this one in the file's list.
    """
    if collecting() and masks:
        key = json.dumps([entry.get("video_id"), entry.get("image_id"), entry.get("category_id"), masks])
        first = seen.setdefault(hashlib.sha256(key.encode()).hexdigest(), place)
        if first != place:
            mismatch(where, f"{where} has the same masks as annotations[{first}]")


def _finite(numbers: Sequence[Any]) -> bool:
    try:
        return math.isfinite(sum(numbers))
    except TypeError:
        return False


def drop_invalid(where: str, masks: list[StoredMask | None]) -> None:
    """Report run lengths that do not fill the frame and replace them by None (pycocotools would hang on some)."""
    rles = {t: mask for t, mask in enumerate(masks) if isinstance(mask, dict)}
    while (first := first_invalid(list(rles.values()))) is not None:
        t = list(rles)[first]
        problem(f"{where}[{t}].counts: run lengths that do not fill {rles.pop(t)['size']} (height, width)")
        masks[t] = None
