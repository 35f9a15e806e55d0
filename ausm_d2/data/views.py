# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Views of registered data sets: the first videos, one frame of each video as an image, all classes as one, or clips
made of images.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ausm_d2.config import with_data_set
from ausm_d2.data.build import get_records
from ausm_d2.data.catalog.base import IMAGE_TOPK, OBJECT_CLASSES, OBJECT_LABEL_SET, class_metadata
from ausm_d2.data.items import TrainingClip
from ausm_d2.data.mapper import ClipMapper
from ausm_d2.data.mask_sources import ListedMasks
from ausm_d2.data.video import FrameSource, Instance, MaskSource, VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import StoredMask, encode

_CLIP_FRAMES = 8  # of a clip made of an image


def first_videos(name: str, count: int | None) -> str:
    """The name of a data set of the first ``count`` videos of ``name``; of all, if ``count`` is None."""
    if count is None:
        return name
    return _register(f"{name}_first{count}", name, lambda: get_records(name)[:count])


def stills(name: str) -> str:
    """The name of a data set of images: the middle frame of each video of ``name``, with what is visible in it."""
    return _register(
        f"{name}_stills",
        name,
        lambda: [_still(each) for each in get_records(name)],
        task="image",
        evaluator_type="coco",
        topk=IMAGE_TOPK,
    )


def as_objects(name: str) -> str:
    """The name of the data set ``name`` with all classes as one, in the label set ``object``."""
    return _register(
        f"{name}_objects",
        name,
        lambda: [_as_objects(each) for each in get_records(name)],
        label_set=OBJECT_LABEL_SET,
        **class_metadata(OBJECT_CLASSES),
    )


def _as_objects(record: VideoRecord) -> VideoRecord:
    instances = [dataclasses.replace(each, category_id=0) for each in record.instances]
    values = {each.name: getattr(record, each.name) for each in dataclasses.fields(VideoRecord)}
    return VideoRecord(**{**values, "instances": instances})


def as_clips(name: str, cfg: CfgNode, count: int, *, back: bool = False, seed: int = 0) -> str:
    """The name of a data set of clips of 8 frames, made as for training (INPUT.PSEUDO) of ``count`` images of ``name``.

    Args:
        cfg: its INPUT keys; copy-paste and drawn prompts are off.
        count: images, at equal distances in the data set; all if it has fewer.
        back: each clip is played forward and backward, 15 frames, so that what leaves the frame comes back.
        seed: of the motion.

    Raises:
        UserError: ``name`` is not a data set of images.
    """
    get_records(name)
    if MetadataCatalog.get(name).task != "image":
        raise UserError(f"{name}: is a data set of videos; clips are made of images")
    view = f"{name}_clips{count}{'_back' if back else ''}_seed{seed}"
    return _register(view, name, lambda: _clips(name, cfg, count, back, seed), task="vis", evaluator_type="ytvis")


def _clips(name: str, cfg: CfgNode, count: int, back: bool, seed: int) -> list[VideoRecord]:
    cfg = with_data_set(cfg, name)
    cfg.INPUT.SAMPLING_FRAME_NUM = _CLIP_FRAMES
    cfg.INPUT.PSEUDO.COPY_PASTE, cfg.INPUT.DRAWN_PROMPTS = 0.0, 0.0
    cfg.INPUT.MAX_INSTANCES = cfg.MODEL.AUSM.NUM_ID
    mapper, records = ClipMapper(cfg), get_records(name)
    order = [*range(_CLIP_FRAMES), *reversed(range(_CLIP_FRAMES - 1))] if back else list(range(_CLIP_FRAMES))
    chosen = records[:: max(1, len(records) // count)][:count]
    return [
        _clip(record, mapper(name, record, np.random.default_rng([seed, i])), order) for i, record in enumerate(chosen)
    ]


def _clip(record: VideoRecord, item: TrainingClip, order: list[int]) -> VideoRecord:
    image, masks = item["image"].numpy(), item["masks"].numpy()
    listed: dict[int, list[StoredMask | None]] = {}
    for i, of_one in enumerate(masks, start=1):
        rles = [encode(mask) if mask.any() else None for mask in of_one]
        listed[i] = [rles[t] for t in order]
    return VideoRecord(
        video_id=record.video_id,
        name=record.name,
        height=image.shape[2],
        width=image.shape[3],
        frames=_Rendered(image, tuple(order)),
        instances=[Instance(i, int(category)) for i, category in enumerate(item["classes"], start=1)],
        masks=ListedMasks(listed),
    )


@dataclass(frozen=True)
class _Rendered:
    """Frames of a rendered clip, in some order."""

    image: np.ndarray  # uint8 (T, 3, H, W), RGB
    order: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        return [f"{t:05d}" for t in range(len(self.order))]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        return np.ascontiguousarray(self.image[self.order[index]].transpose(1, 2, 0))


def _register(name: str, of: str, load: Callable[[], list[VideoRecord]], **changed: Any) -> str:
    if name not in DatasetCatalog:
        get_records(of)  # sets the classes of a user's own data set, which are in its file
        known = {key: value for key, value in MetadataCatalog.get(of).as_dict().items() if key != "name"}
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(**{**known, **changed})
    return name


@dataclass(frozen=True)
class _OneFrame:
    """Frame ``index`` of a video as a video of its own; frames and masks alike."""

    frames: FrameSource
    masks: MaskSource | None
    index: int

    @property
    def names(self) -> list[str]:
        return [self.frames.names[self.index]]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        return self.frames[self.index]

    def read(self, index: int) -> Mapping[int, StoredMask]:
        """The masks of the frame by instance id."""
        assert self.masks is not None
        return self.masks.read(self.index)


def _still(record: VideoRecord) -> VideoRecord:
    labelled = record.labelled_frames
    one = _OneFrame(record.frames, record.masks, labelled[len(labelled) // 2] if labelled else record.length // 2)
    visible = one.read(0) if record.masks is not None else {}
    return VideoRecord(
        video_id=record.video_id,
        name=record.name,
        height=record.height,
        width=record.width,
        frames=one,
        instances=[dataclasses.replace(each) for each in record.instances if each.instance_id in visible],
        masks=None if record.masks is None else one,
    )
