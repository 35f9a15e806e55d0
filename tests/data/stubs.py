# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Small data sets made of arrays, for the tests of the loaders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from ausm_d2.config import add_ausm_config
from ausm_d2.data.video import Instance, VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import StoredMask


@dataclass
class ArrayFrames:
    """Frames in memory."""

    arrays: Sequence[np.ndarray]

    @property
    def names(self) -> list[str]:
        return [f"{i:05d}" for i in range(len(self.arrays))]

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.arrays[index]


@dataclass
class BrokenFrames(ArrayFrames):
    """Frames that cannot be read."""

    def __getitem__(self, index: int) -> np.ndarray:
        raise UserError(f"{index:05d}.jpg: truncated")


@dataclass
class ListedMasks:
    """Masks in memory, by instance and frame."""

    masks: dict[int, list[StoredMask | None]]

    def read(self, index: int) -> dict[int, StoredMask]:
        return {i: frames[index] for i, frames in self.masks.items() if frames[index] is not None}


def moving_square(
    video_id: int, length: int = 8, size: tuple[int, int] = (48, 64), broken: bool = False
) -> VideoRecord:
    """A white square of 12 pixels (instance 5, category 1) that moves right on black by 3 pixels per frame."""
    frames, masks = [], []
    for t in range(length):
        mask = np.zeros(size, bool)
        mask[10:22, 4 + 3 * t : 16 + 3 * t] = t > 0 or length == 1
        masks.append(mask if mask.any() else None)
        frames.append(np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1))
    source = (BrokenFrames if broken else ArrayFrames)(frames)
    return VideoRecord(
        video_id, f"video{video_id}", *size, frames=source, instances=[Instance(5, 1)], masks=ListedMasks({5: masks})
    )


def register(name: str, records: list[VideoRecord], task: str = "vis", label_set: str = "stub") -> None:
    """Register records; a name that exists is replaced."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    evaluator = {"vis": "ytvis", "vos": "vos", "image": "coco"}[task]
    MetadataCatalog.get(name).set(
        thing_classes=["disc", "square"],
        evaluator_type=evaluator,
        task=task,
        exhaustive=task != "vos",
        label_set=label_set,
    )


def small_cfg(*names: str, **keys: object) -> CfgNode:
    """A config that leaves frames as they are: no resizing up to 64 pixels, no flip; other keys as given."""
    cfg = get_cfg()
    add_ausm_config(cfg)
    cfg.SEED = 3
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATASETS.TRAIN = names
    cfg.INPUT.MIN_SIZE_TRAIN = cfg.INPUT.PSEUDO.MIN_SIZE_TRAIN = (48,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.SAMPLING_FRAME_NUM = 4
    cfg.merge_from_list([part for key, value in keys.items() for part in (key.replace("__", "."), value)])
    return cfg
