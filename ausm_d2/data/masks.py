# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Instance masks as the data sets store them: listed run lengths and polygons, label pictures, one folder per object.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import pycocotools.mask as mask_util

from ausm_d2.data.video import MaskSource, StoredMask
from ausm_d2.errors import UserError
from ausm_d2.evaluation.png import read_labels, read_picture
from ausm_d2.evaluation.rle import to_rle


@dataclass(frozen=True)
class ListedMasks:
    """Masks from an annotation file, one entry per frame, ``None`` where the instance is not visible."""

    by_instance: dict[int, list[StoredMask | None]]

    def read(self, index: int) -> dict[int, StoredMask]:
        return {i: mask for i, frames in self.by_instance.items() if (mask := frames[index]) is not None}


@dataclass(frozen=True)
class LabelPictures:
    """Label pictures (pixel = object id, 0 = background), one for each labelled frame: DAVIS, YouTube-VOS, MOSE."""

    root: str
    files: tuple[str | None, ...]  # per frame, relative to root; None: no labels
    size: tuple[int, int]  # (H, W) of the frames

    def path(self, index: int) -> str | None:
        file = self.files[index]
        return None if file is None else f"{self.root}/{file}"

    def read(self, index: int) -> dict[int, np.ndarray]:
        path = self.path(index)
        if path is None:
            return {}
        labels = read_labels(path)
        _check_size(path, labels, self.size)
        return {int(i): labels == i for i in np.unique(labels) if i}


@dataclass(frozen=True)
class ObjectFolders:
    """One folder of black and white pictures for each object, which may overlap: SA-V's validation and test videos."""

    root: str  # of the video: <root>/<folder>/<frame>.png
    folders: Mapping[int, str]  # by object id
    names: tuple[str, ...]  # of all frames
    pictures: Mapping[int, frozenset[str]]  # frame names that have a picture, by object id
    size: tuple[int, int]  # (H, W) of the frames

    def read(self, index: int) -> dict[int, np.ndarray]:
        name, masks = self.names[index], {}
        for object_id, folder in self.folders.items():
            if name in self.pictures[object_id]:
                path = f"{self.root}/{folder}/{name}.png"
                mask = read_picture(path) > 0
                _check_size(path, mask, self.size)
                if mask.any():
                    masks[object_id] = mask
        return masks


def _check_size(path: str, picture: np.ndarray, size: tuple[int, int]) -> None:
    if picture.shape != size:
        height, width = picture.shape
        raise UserError(f"{path}: is {height} x {width} (height x width), its frame is {size[0]} x {size[1]}")


class FirstFrames(Mapping[int, int]):
    """The frame in which each object appears first, found by reading the masks when it is asked for."""

    def __init__(self, masks: MaskSource, frames: Sequence[int], objects: Collection[int] | None = None) -> None:
        """
        Args:
            masks: of one video.
            frames: the frames that may have masks, ascending.
            objects: the ids to look for; None: all there are.
        """
        self._masks = masks
        self._frames = frames
        self._objects = objects

    @cached_property
    def _first(self) -> dict[int, int]:
        first: dict[int, int] = {}
        for frame in self._frames:
            for object_id in self._masks.read(frame):
                first.setdefault(object_id, frame)
            if self._objects is not None and len(first) == len(self._objects):
                break
        return first

    def __getitem__(self, object_id: int) -> int:
        return self._first[object_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)


# Decoding only what is there


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
    x, y, width, height = (int(side) for side in mask_util.toBbox(rle)) if rle else (0, 0, 0, 0)
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
    """Run lengths, background first, of pycocotools' compressed form.

    Numbers are in base 32, one digit a character, the lowest first; from the fourth on they are differences to the
    number two before.
    """
    chars = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8) - 48
    ends = np.flatnonzero(chars < 0x20)  # all but the last character of a number have bit 0x20
    digits = (chars & 0x1F).astype(np.int64)
    widths = np.diff(ends, prepend=-1)
    numbers = digits[ends]
    numbers -= (numbers & 0x10) << 1  # the highest digit has the sign
    for back in range(1, int(widths.max())):
        longer = np.flatnonzero(widths > back)
        numbers[longer] = (numbers[longer] << 5) | digits[ends[longer] - back]
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
