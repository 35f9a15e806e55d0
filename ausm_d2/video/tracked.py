# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The objects of a video, frame by frame, as all outputs take them; and the journal, which stores them on disk.

Shape shorthand:
    H, W: frame size in pixels
    N: objects of a frame
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ausm_d2.errors import UserError
from ausm_d2.masks.rle import Rle, decode, encode


@dataclass
class TrackedObject:
    """One object in one frame."""

    id: int
    name: str  # its class, or the user's name for it
    class_id: int
    score: float
    mask: Rle
    owned: Rle  # the mask without pixels that another, more confident object has
    pixels: np.ndarray | None = None  # bool (H, W), the mask; None: decoded on access

    def array(self) -> np.ndarray:
        """The mask, bool (H, W)."""
        return decode(self.mask) if self.pixels is None else self.pixels


@dataclass
class TrackedFrame:
    """One frame and its visible objects."""

    index: int
    name: str
    time: float  # seconds since the first frame
    file: str  # name with extension, for annotation files
    objects: list[TrackedObject] = field(default_factory=list)
    image: np.ndarray | None = None  # uint8 (H, W, 3), BGR; None: read from the journal, which has no images

    @classmethod
    def of_arrays(
        cls,
        index: int,
        name: str,
        time: float,
        file: str,
        image: np.ndarray,
        masks: np.ndarray,
        id_map: np.ndarray,
        entries: list[tuple[int, str, int, float]],
    ) -> TrackedFrame:
        """
        Args:
            masks: bool (N, H, W).
            id_map: integers (H, W): id of the object that has each pixel.
            entries: id, name, class and score of N objects. Those with an empty mask are hidden, and left out.
        """
        objects = []
        for mask, (track_id, label, class_id, score) in zip(masks, entries, strict=True):
            if not mask.any():
                continue
            rle, own = encode(mask), id_map == track_id
            owned = rle if np.array_equal(own, mask) else encode(own & mask)
            objects.append(TrackedObject(track_id, label, class_id, round(score, 4), rle, owned, mask))
        return cls(index, name, time, file, objects, image)

    def id_map(self, height: int, width: int) -> np.ndarray:
        """int32 (H, W): id of the object that has each pixel, 0 for background."""
        out = np.zeros((height, width), np.int32)
        for each in self.objects:
            out[decode(each.owned)] = each.id
        return out


@dataclass(frozen=True)
class Done:
    """Where existing results are continued."""

    frames: int  # frames that are kept
    time: float  # of the next frame, in seconds


@dataclass
class VideoInfo:
    """The properties of a video that outputs need."""

    name: str
    height: int
    width: int
    fps: Fraction
    prompted: bool  # all objects were prompted
    classes: list[str]
    is_image: bool = False


class Journal:
    """All results, appended to a file of JSON lines: the objects of a frame, then the frame.

    A frame counts once its own line is complete, so earlier frames are intact however the program ends.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        """
        Args:
            path: of the file.
            keep: number of frames of an existing file that are kept; later ones are removed.
        """
        self.path = path
        path.touch()
        with path.open("r+b") as file:
            end, frames = 0, 0
            while frames < keep and (line := file.readline()):
                frames += line[1:8] == b'"frame"'
                if line.endswith(b"\n"):
                    end = file.tell()
            if frames < keep:
                raise UserError(f"{path}: holds {frames} frames, {keep} expected; start again without --resume")
            file.truncate(end if keep else 0)
        self.frames = keep
        self._file = path.open("ab", buffering=0)

    def append(self, frame: TrackedFrame) -> None:
        lines = []
        for each in frame.objects:
            entry: dict[str, Any] = {"object": each.id, "frame": frame.index, "name": each.name}
            entry.update({"class": each.class_id, "score": each.score, "mask": each.mask})
            if each.owned is not each.mask:
                entry["owned"] = each.owned
            lines.append(json.dumps(entry))
        lines.append(json.dumps({"frame": frame.index, "name": frame.name, "time": frame.time, "file": frame.file}))
        data = memoryview(("\n".join(lines) + "\n").encode())
        while data:  # a nearly full disk accepts a part
            data = data[self._file.write(data) :]
        self.frames += 1

    def close(self) -> None:
        self._file.close()

    def read(self) -> Iterator[TrackedFrame]:
        """Yield the frames, without images."""
        with self.path.open("rb") as file:
            objects: list[TrackedObject] = []
            for line in file:
                if not line.endswith(b"\n"):
                    return
                entry = json.loads(line)
                if "object" in entry:
                    objects.append(_object(entry))
                else:
                    yield TrackedFrame(entry["frame"], entry["name"], entry["time"], entry["file"], objects)
                    objects = []

    def tracks(self) -> dict[int, array[int]]:
        """Positions in the file of each object's entries, by object id, in ascending order of ids."""
        places: dict[int, array[int]] = {}
        waiting: list[tuple[int, int]] = []
        with self.path.open("rb") as file:
            at = 0
            for line in file:
                if line.startswith(b'{"object": '):
                    waiting.append((int(line[11 : line.index(b",", 11)]), at))
                elif line.endswith(b"\n"):
                    for track_id, place in waiting:
                        places.setdefault(track_id, array("q")).append(place)
                    waiting = []
                at += len(line)
        return dict(sorted(places.items()))

    def entries(self, places: array[int]) -> Iterator[tuple[int, TrackedObject]]:
        """Yield frame index and object of the entries at some positions."""
        with self.path.open("rb") as file:
            for place in places:
                file.seek(place)
                entry = json.loads(file.readline())
                yield entry["frame"], _object(entry)


def _object(entry: dict[str, Any]) -> TrackedObject:
    mask = entry["mask"]
    return TrackedObject(entry["object"], entry["name"], entry["class"], entry["score"], mask, entry.get("owned", mask))
