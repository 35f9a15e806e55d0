# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""From a video record to a training item.

Shape shorthand:
    T: frames of the clip
    N: instances visible in the clip
    H, W: size of a stored frame in pixels
    h, w: size of an augmented frame in pixels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog

from ausm_d2.data.augmentation import Augmentation, ClipPlan, build_augmentations, render_frame, render_mask
from ausm_d2.data.clip_sampler import ClipSampler
from ausm_d2.data.video import StoredMask, VideoRecord
from ausm_d2.errors import UserError


class ClipMapper:
    """Sample a clip of a record (a pseudo-video, where the record is an image), augment it, make it tensors."""

    @configurable
    def __init__(
        self,
        *,
        samplers: Mapping[str, ClipSampler],
        augmentations: Sequence[Augmentation],
        pseudo_augmentations: Sequence[Augmentation],
        fill: tuple[float, float, float] = (124.0, 116.0, 104.0),
    ) -> None:
        """
        Args:
            samplers: the clip sampler of each data set, by name.
            augmentations: for clips of videos, in their order.
            pseudo_augmentations: for clips made of one image.
            fill: RGB of what lies outside of the stored frame; the mean pixel, so that the model sees zeros.
        """
        self.samplers = samplers
        self.augmentations = augmentations
        self.pseudo_augmentations = pseudo_augmentations
        self.fill = fill

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        names, ranges = cfg.DATASETS.TRAIN, cfg.INPUT.SAMPLING_FRAME_RANGES
        if ranges and len(ranges) != len(names):
            raise UserError(
                f"INPUT.SAMPLING_FRAME_RANGES: {len(ranges)} numbers for the {len(names)} data sets of DATASETS.TRAIN"
            )
        red, green, blue = (float(round(value)) for value in cfg.MODEL.PIXEL_MEAN)
        return {
            "samplers": {name: ClipSampler(cfg, ranges[i] if ranges else None) for i, name in enumerate(names)},
            "augmentations": build_augmentations(cfg, pseudo=False),
            "pseudo_augmentations": build_augmentations(cfg, pseudo=True),
            "fill": (red, green, blue),
        }

    def __call__(self, dataset_name: str, record: VideoRecord, rng: np.random.Generator) -> dict[str, Any]:
        """
        Returns:
            "image" uint8 (T, 3, h, w) RGB; "masks" bool (N, T, h, w), row i = instance i in every frame;
            "classes" int64 (N,); "labelled" bool (T,); "head", "exhaustive", "task", "dataset_name", "video_id";
            "frame_indices", one per frame; "height", "width" = H, W.

        Raises:
            UserError: a frame or mask that cannot be read, or whose size is not the video's; it names the place.
        """
        metadata = MetadataCatalog.get(dataset_name)
        sampler = self.samplers[dataset_name]
        stored_size = (record.height, record.width)
        if metadata.task == "image":
            indices, augmentations = [0] * sampler.num_frames, self.pseudo_augmentations
        else:
            indices, augmentations = sampler(labelled_frames(record), rng), self.augmentations
        plan = ClipPlan.identity(len(indices), stored_size)
        for augmentation in augmentations:
            augmentation(plan, rng)

        height, width = plan.size
        image = np.empty((len(indices), 3, height, width), np.uint8)
        # In temporal order, because a video file is read forwards; each stored frame once.
        order = sorted(range(len(indices)), key=lambda t: indices[t])
        visible: dict[int, list[tuple[int, np.ndarray]]] = {}
        categories = {instance.instance_id: instance.category_id for instance in record.instances}
        crowds = {instance.instance_id for instance in record.instances if instance.is_crowd}
        stored_index, frame = -1, np.empty(0)
        masks: Mapping[int, StoredMask] = {}
        for t in order:
            if indices[t] != stored_index:
                stored_index = indices[t]
                frame = read_frame(record, stored_index)
                masks = record.masks.read(stored_index) if record.masks else {}
            cv2.split(render_frame(frame, plan, t, self.fill), list(image[t]))
            for instance_id, mask in masks.items():
                if instance_id in crowds:
                    continue
                try:
                    rendered = render_mask(mask, stored_size, plan, t)
                except UserError as error:
                    where = f"{dataset_name}, video {record.name}, frame {record.frames.names[stored_index]}"
                    raise UserError(f"{where}, instance {instance_id}: {error}") from None
                if rendered.any():
                    visible.setdefault(instance_id, []).append((t, rendered))

        result = np.zeros((len(visible), len(indices), height, width), bool)
        for row, frames in enumerate(visible.values()):
            for t, rendered in frames:
                result[row, t] = rendered
        labelled = [record.labelled is None or record.labelled[index] for index in indices]
        return {
            "image": torch.from_numpy(image),
            "masks": torch.from_numpy(result),
            "classes": torch.tensor([categories.get(i, 0) for i in visible], dtype=torch.int64),
            "labelled": torch.tensor(labelled, dtype=torch.bool),
            "head": metadata.head,
            "exhaustive": metadata.exhaustive,
            "task": metadata.task,
            "dataset_name": dataset_name,
            "video_id": record.video_id,
            "frame_indices": indices,
            "height": record.height,
            "width": record.width,
        }


def labelled_frames(record: VideoRecord) -> Sequence[int]:
    """Indices of the frames that carry labels, ascending.

    Raises:
        UserError: there is none.
    """
    if record.labelled is None:
        frames: Sequence[int] = range(record.length)
    else:
        frames = [index for index, labelled in enumerate(record.labelled) if labelled]
    if not frames:
        raise UserError(f"video {record.name}: has no frame with labels (of {record.length} frames)")
    return frames


def read_frame(record: VideoRecord, index: int) -> np.ndarray:
    """Frame ``index`` of a record, uint8 (H, W, 3) RGB.

    Raises:
        UserError: a frame that cannot be read, or whose size is not the record's.
    """
    frame = record.frames[index]
    if frame.shape[:2] != (record.height, record.width):
        raise UserError(
            f"video {record.name}, frame {record.frames.names[index]}: is {frame.shape[0]} x {frame.shape[1]} "
            f"(height x width), {record.height} x {record.width} expected"
        )
    return frame
