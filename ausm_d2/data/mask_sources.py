# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Instance masks in the data sets' formats: run lengths and polygons, label images, one folder per object.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ausm_d2.data.video import MaskSource
from ausm_d2.errors import UserError
from ausm_d2.masks.png import MANY_IDS, edge_ids, read_labels, read_mask
from ausm_d2.masks.rle import StoredMask


@dataclass(frozen=True)
class ListedMasks:
    """Masks from an annotation file, one entry per frame, ``None`` where the instance is not visible."""

    by_instance: dict[int, list[StoredMask | None]]

    def read(self, index: int) -> dict[int, StoredMask]:
        return {i: mask for i, frames in self.by_instance.items() if (mask := frames[index]) is not None}


@dataclass(frozen=True)
class LabelPictures:
    """Label images (pixel = object id, 0 = background), one per labelled frame: DAVIS, YouTube-VOS, MOSE."""

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
        labels = read_labels(path, video=(f"{self.root}/{file}" for file in self.files if file is not None))
        _check_size(path, labels, self.size)
        ids = np.unique(labels[labels > 0])
        if len(ids) > MANY_IDS and 2 * (thin := len(edge_ids(labels))) > len(ids):
            raise UserError(
                f"{path}: {len(ids)} object ids, {thin} of them on hardly any pixels: this looks like a mask with "
                "smoothed (antialiased) edges; every pixel must be 0 or the id of an object"
            )
        return {int(i): labels == i for i in ids}


@dataclass(frozen=True)
class ObjectFolders:
    """One folder of black-and-white images per object; masks may overlap: SA-V's validation and test videos."""

    root: str  # of the video: <root>/<folder>/<frame>.png
    folders: Mapping[int, str]  # by object id
    names: tuple[str, ...]  # of all frames
    pictures: Mapping[int, frozenset[str]]  # names of the frames with an image, by object id
    size: tuple[int, int]  # (H, W) of the frames

    def read(self, index: int) -> dict[int, np.ndarray]:
        name, masks = self.names[index], {}
        for object_id, folder in self.folders.items():
            if name in self.pictures[object_id]:
                path = f"{self.root}/{folder}/{name}.png"
                mask = read_mask(path)
                _check_size(path, mask, self.size)
                if mask.any():
                    masks[object_id] = mask
        return masks


def _check_size(path: str, picture: np.ndarray, size: tuple[int, int]) -> None:
    if picture.shape != size:
        height, width = picture.shape
        raise UserError(f"{path}: is {height} x {width} (height x width), its frame is {size[0]} x {size[1]}")


class FirstFrames(Mapping[int, int]):
    """The first frame of each object. Masks are read on first access."""

    def __init__(self, masks: MaskSource, frames: Sequence[int], objects: Collection[int] | None = None) -> None:
        """
        Args:
            masks: of one video.
            frames: the frames that may have masks, ascending.
            objects: ids to look for; None: all.
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
