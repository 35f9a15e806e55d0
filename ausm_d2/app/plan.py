# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""What the user has entered for one video: prompts, names, hidden and removed objects."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ausm_d2.errors import UserError
from ausm_d2.streaming.prompts import Box, Points

_NAME = 60  # characters
_PROMPTS = 200  # of one object in one frame
_OBJECTS = 100  # given by the user

Given = Box | Points


@dataclass
class Plan:
    """Frames are numbers from 0, objects are ids from 1."""

    prompts: dict[int, dict[int, list[Given]]] = field(default_factory=dict)  # by frame and object, in their order
    find_at: int | None = None  # all objects are detected from this frame on; None: no detection
    names: dict[int, str] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)  # left out of the picture and of downloads
    removed: set[int] = field(default_factory=set)  # permanently
    last_id: int = 0  # the highest id used so far

    @property
    def begin(self) -> int | None:
        """The first frame with a prompt, or from which everything is to be found."""
        frames = [*self.prompts, *([] if self.find_at is None else [self.find_at])]
        return min(frames, default=None)

    @property
    def given(self) -> set[int]:
        """Objects that the user has clicked on."""
        return {object_id for by_id in self.prompts.values() for object_id in by_id}

    def at(self, frame: int) -> dict[int, list[Given]]:
        """The prompts of a frame."""
        return self.prompts.get(frame, {})

    def add(self, frame: int, object_id: int | None, given: Given) -> int:
        """Add a prompt for an object (None: a new one). Returns the object's id.

        Raises:
            UserError: there are too many objects or prompts, or the object does not exist.
        """
        if object_id is None:
            if len(self.given) >= _OBJECTS:
                raise UserError(f"{_OBJECTS} objects are followed already")
            object_id = self.last_id + 1
        elif not 0 < object_id <= self.last_id or object_id in self.removed:
            raise UserError(f"there is no object {object_id}")
        several = self.prompts.setdefault(frame, {}).setdefault(object_id, [])
        if len(several) >= _PROMPTS:
            raise UserError(f"object {object_id} has {_PROMPTS} clicks in this frame already")
        several.append(given)
        self.last_id = max(self.last_id, object_id)
        return object_id

    def undo(self, frame: int, object_id: int) -> None:
        """Undo the last prompt of an object in a frame.

        Raises:
            UserError: there is none.
        """
        several = self.at(frame).get(object_id)
        if not several:
            raise UserError(f"there is no click on object {object_id} in this frame to take back")
        several.pop()
        if not several:
            del self.prompts[frame][object_id]
        if not self.prompts[frame]:
            del self.prompts[frame]

    def remove(self, object_id: int) -> None:
        """Remove an object and its prompts."""
        self.removed.add(object_id)
        self.hidden.discard(object_id)
        self.names.pop(object_id, None)
        for frame in [frame for frame, by_id in self.prompts.items() if object_id in by_id]:
            del self.prompts[frame][object_id]
            if not self.prompts[frame]:
                del self.prompts[frame]

    def rename(self, object_id: int, name: str) -> None:
        """Name an object; an empty name restores the default."""
        text = "".join(each for each in name if unicodedata.category(each)[0] != "C").strip()[:_NAME]
        if text:
            self.names[object_id] = text
        else:
            self.names.pop(object_id, None)

    def to_prompt_file(self) -> dict[str, Any]:
        """As ``ausm track --prompts`` reads it."""
        objects = []
        for object_id in sorted(self.given):
            prompts = [
                {"frame": frame, **_entry(each)}
                for frame, by_id in sorted(self.prompts.items())
                for each in by_id.get(object_id, [])
            ]
            name = {"name": self.names[object_id]} if object_id in self.names else {}
            objects.append({"id": object_id, **name, "prompts": prompts})
        return {"version": 1, "find": self.find_at is not None, "objects": objects}


def _entry(given: Given) -> dict[str, Any]:
    if isinstance(given, Box):
        return {"box": [given.x0, given.y0, given.x1, given.y1]}
    return {"points": [list(point) for point in given.points], "labels": list(given.labels or [])}


def point(x: Any, y: Any, label: Any, size: tuple[int, int]) -> Points:
    """Check a click.

    Args:
        size: (H, W) of the frame.

    Raises:
        UserError: the coordinates are not numbers, or outside the frame.
    """
    across, down = _numbers([x, y], "a click")
    height, width = size
    if not (0 <= across < width and 0 <= down < height):
        raise UserError(f"a click at {across:g}, {down:g} is outside of the frame of {width}x{height} pixels")
    if isinstance(label, bool) or label not in (0, 1):
        raise UserError(f"label {label!r}, expected 1 (on the object) or 0 (where it is not)")
    return Points([(across, down)], [label])


def box(corners: Any, size: tuple[int, int]) -> Box:
    """Check a box and clip it to the frame.

    Args:
        corners: left, top, right, bottom.
        size: (H, W) of the frame.

    Raises:
        UserError: the corners are not numbers, the box is outside the frame, or thinner than two pixels.
    """
    if not isinstance(corners, list) or len(corners) != 4:
        raise UserError("a box is left, top, right, bottom")
    x0, y0, x1, y1 = _numbers(corners, "a box")
    height, width = size
    left, right = max(0.0, min(x0, x1)), min(float(width), max(x0, x1))
    top, bottom = max(0.0, min(y0, y1)), min(float(height), max(y0, y1))
    if right - left < 2 or bottom - top < 2:
        raise UserError(f"the box holds nothing of the frame of {width}x{height} pixels")
    return Box(left, top, right, bottom)


def _numbers(values: Sequence[Any], what: str) -> list[float]:
    if not all(isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each) for each in values):
        raise UserError(f"{what}: {list(values)!r}, expected numbers")
    return [float(each) for each in values]
