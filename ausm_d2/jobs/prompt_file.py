# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Reads prompts from files: a label image for the first frame, or a JSON file with any prompts at any frames.

The JSON format is described in docs/command_line.md; its schema is docs/prompts.schema.json.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ausm_d2.errors import UserError
from ausm_d2.io import read_json
from ausm_d2.masks.png import MANY_IDS, VOID, edge_ids, read_labels, read_mask, read_picture
from ausm_d2.masks.rle import decode, first_invalid, to_rle
from ausm_d2.streaming.prompts import Box, Mask, Points, Prompt, Scribble, check_object_id


@dataclass
class PromptPlan:
    """Prompts by frame, and the user's names of objects."""

    prompts: dict[int, dict[int, list[Prompt]]] = field(default_factory=dict)  # by frame, then by object id
    names: dict[int, str] = field(default_factory=dict)  # by object id
    find: bool = False  # also detect all other objects

    def add(self, frame: int, object_id: int, prompt: Prompt) -> None:
        """Add a prompt."""
        self.prompts.setdefault(frame, {}).setdefault(object_id, []).append(prompt)


def read_prompts(path: str | os.PathLike[str]) -> dict[int, np.ndarray]:
    """The objects of a label image (pixel = object id; of 0 and 255 only: one object, id 1): bool (H, W) by id.

    Raises:
        UserError: if it is not a label image, has no objects, or has antialiased edges.
    """
    labels = read_labels(path)
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    if not len(ids):
        raise UserError(f"{path}: the prompt is empty: every pixel is background")
    # Antialiased edges are thin lines of intermediate values.
    thin = len(edge_ids(labels))
    if 2 * thin > len(ids) and (len(ids) > MANY_IDS or (read_picture(path).values == VOID).sum() > counts.sum()):
        raise UserError(
            f"{path}: {len(ids)} object ids, {thin} of them on hardly any pixels: this looks like a mask with "
            "smoothed (antialiased) edges; every pixel must be 0 or the id of an object"
        )
    return {int(i): labels == i for i in ids}


def read_prompt_file(path: str | os.PathLike[str]) -> PromptPlan:
    """The prompts of a JSON file.

    Raises:
        UserError: naming the file, the field, what was found and what was expected.
    """
    data = read_json(path)
    top = _entry(data, f"{path}", {"objects"}, {"version", "find"})
    if top.get("version", 1) != 1:
        raise UserError(f"{path}: version: {top['version']!r}, expected 1")
    if not isinstance(top.get("find", False), bool):
        raise UserError(f"{path}: find: {top['find']!r}, expected true or false")
    plan = PromptPlan(find=top.get("find", False))
    for i, each in enumerate(_list(top["objects"], f"{path}: objects")):
        where = f"{path}: objects[{i}]"
        entry = _entry(each, where, {"id", "prompts"}, {"name"})
        try:
            object_id = check_object_id(entry["id"])
        except UserError as error:
            raise UserError(f"{where}.id: {error}") from None
        if object_id in plan.names:
            raise UserError(f"{where}.id: {object_id} is there twice")
        if not isinstance(entry.get("name", ""), str):
            raise UserError(f"{where}.name: {entry['name']!r}, expected text")
        plan.names[object_id] = entry.get("name", "")
        for k, prompt in enumerate(_list(entry["prompts"], f"{where}.prompts")):
            frame, made = _prompt(prompt, f"{where}.prompts[{k}]", Path(path).parent)
            plan.add(frame, object_id, made)
    plan.names = {object_id: name for object_id, name in plan.names.items() if name}
    return plan


_KINDS: dict[str, set[str]] = {"mask": set(), "box": set(), "points": {"labels"}, "scribble": {"label", "width"}}


def _prompt(data: Any, where: str, folder: Path) -> tuple[int, Prompt]:
    """Frame and prompt of one entry."""
    kinds = [kind for kind in _KINDS if isinstance(data, dict) and kind in data]
    if len(kinds) != 1:
        raise UserError(f"{where}: {len(kinds)} of {', '.join(_KINDS)} found, one expected")
    kind = kinds[0]
    entry = _entry(data, where, {kind}, {"frame"} | _KINDS[kind])
    frame = entry.get("frame", 0)
    if isinstance(frame, bool) or not isinstance(frame, int) or frame < 0:
        raise UserError(f"{where}.frame: {frame!r}, expected a whole number, 0 for the first frame")
    value, at = entry[kind], f"{where}.{kind}"
    if kind == "box":
        return frame, Box(*_numbers(value, at, 4))
    if kind == "mask":
        return frame, Mask(_mask(value, at, folder))
    points = [_numbers(point, f"{at}[{i}]", 2) for i, point in enumerate(_list(value, at))]
    if kind == "points":
        labels = entry.get("labels")
        if labels is not None and (len(_list(labels, f"{where}.labels")) != len(points) or not _labels(labels)):
            raise UserError(f"{where}.labels: {labels!r}, expected 1 or 0 for each of {len(points)} points")
        return frame, Points(points, labels)
    label, width = entry.get("label", 1), entry.get("width")
    if not _labels([label]):
        raise UserError(f"{where}.label: {label!r}, expected 1 or 0")
    if width is not None and _numbers([width], f"{where}.width", 1)[0] <= 0:
        raise UserError(f"{where}.width: {width!r}, expected pixels")
    return frame, Scribble(points, label, width)


def _mask(value: Any, where: str, folder: Path) -> np.ndarray:
    if isinstance(value, str):
        return read_mask(folder / value)
    size = value.get("size") if isinstance(value, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"{where}: expected the name of a picture, or run lengths with size [height, width] and counts")
    try:
        rle = to_rle(value, *size)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if rle is None or first_invalid([rle]) is not None:
        raise UserError(f"{where}: run lengths that do not fill a frame of {size[1]}x{size[0]} pixels")
    return decode(rle)


def _entry(data: Any, where: str, needed: set[str], allowed: set[str]) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise UserError(f"{where}: an object with {', '.join(sorted(needed))} expected")
    for name in sorted(needed - data.keys()):
        raise UserError(f"{where}: '{name}' is missing")
    for name in sorted(data.keys() - needed - allowed):
        raise UserError(f"{where}: '{name}' is unknown; known: {', '.join(sorted(needed | allowed))}")
    return data


def _list(data: Any, where: str) -> Sequence[Any]:
    if not isinstance(data, list) or not data:
        raise UserError(f"{where}: a list expected, with one entry or more")
    return data


def _labels(values: Sequence[Any]) -> bool:
    return all(not isinstance(value, bool) and value in (0, 1) for value in values)


def _numbers(data: Any, where: str, count: int) -> list[float]:
    numbers = data if isinstance(data, list) else []
    good = [isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each) for each in numbers]
    if len(numbers) != count or not all(good):
        raise UserError(f"{where}: {data!r} found, {count} numbers expected")
    return [float(each) for each in numbers]
