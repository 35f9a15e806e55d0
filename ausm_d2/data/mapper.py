# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""From a video record to a training item.

Shape shorthand:
    T: frames of the clip
    N: instances visible in the clip
    H, W: size of a stored frame in pixels
    h, w: size of an augmented frame in pixels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog

from ausm_d2.data.augmentation import Augmentation, ClipPlan, Looks, build_augmentations, render_frame, render_mask
from ausm_d2.data.catalog.base import chosen_label_sets
from ausm_d2.data.clip_sampler import ClipSampler
from ausm_d2.data.coarse import coarse_mask
from ausm_d2.data.items import TrainingClip
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import StoredMask


class ClipMapper:
    """Sample a clip of a record (a pseudo-video, where the record is an image), augment it, make it tensors."""

    @configurable
    def __init__(
        self,
        *,
        samplers: Mapping[str, ClipSampler],
        augmentations: Sequence[Augmentation],
        pseudo_augmentations: Sequence[Augmentation],
        looks: Looks | None = None,
        drawn_prompts: float = 0.0,
        copy_paste: float = 0.0,
        paste_twin: float = 0.0,
        paste_scale: float = 0.4,
        max_instances: int = 100,
        label_sets: Mapping[str, str] | None = None,
        fill: tuple[float, float, float] = (124.0, 116.0, 104.0),
    ) -> None:
        """
        Args:
            samplers: the clip sampler of each data set, by name.
            augmentations: for clips of videos, in their order.
            pseudo_augmentations: for clips made of one image.
            looks: draws how a clip looks; None: as it is stored.
            drawn_prompts: probability that the objects of a clip are given by boxes, clicks or scribbles.
            copy_paste: probability that objects of another image go through a clip made of one image.
            paste_twin: probability that the other image is the same one.
            paste_scale: least size of the other image, relative to the largest that fits.
            max_instances: of a clip. If there are more, a random subset of this size is kept, and the clip is not
                exhaustive.
            label_sets: those of data sets that have another than their own, by name.
            fill: RGB outside of the stored frame; the mean pixel, so that the model sees zeros.
        """
        self.samplers = samplers
        self.augmentations = augmentations
        self.pseudo_augmentations = pseudo_augmentations
        self.looks = looks
        self.drawn_prompts = drawn_prompts
        self.copy_paste = copy_paste
        self.paste_twin = paste_twin
        self.paste_scale = paste_scale
        self.max_instances = max_instances
        self.label_sets = label_sets or {}
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
            "looks": Looks.from_config(cfg),
            "drawn_prompts": cfg.INPUT.DRAWN_PROMPTS,
            "copy_paste": cfg.INPUT.PSEUDO.COPY_PASTE,
            "paste_twin": cfg.INPUT.PSEUDO.PASTE_TWIN,
            "paste_scale": cfg.INPUT.PSEUDO.PASTE_SCALE,
            "label_sets": chosen_label_sets(cfg),
            "max_instances": min(cfg.INPUT.MAX_INSTANCES, cfg.MODEL.AUSM.NUM_ID),
            "fill": (red, green, blue),
        }

    def __call__(
        self,
        dataset_name: str,
        record: VideoRecord,
        rng: np.random.Generator,
        draw_other: Callable[[np.random.Generator], VideoRecord] | None = None,
    ) -> TrainingClip:
        """
        Args:
            dataset_name: what the record is of.
            record: a video, or an image as a video of one frame.
            rng: everything random comes from it.
            draw_other: gives any other record of the data set, for copy-paste.

        Returns:
            The training item.

        Raises:
            UserError: a frame or mask that cannot be read, or whose size is not the video's; it names the place.
        """
        metadata = MetadataCatalog.get(dataset_name)
        sampler = self.samplers[dataset_name]
        pseudo = metadata.task == "image"
        indices = [0] * sampler.num_frames if pseudo else sampler(_frames_to_draw(record), rng)
        plan = ClipPlan.identity(len(indices), (record.height, record.width))
        for augmentation in self.pseudo_augmentations if pseudo else self.augmentations:
            augmentation(plan, rng)
        look = self.looks(rng) if self.looks else None
        if look:
            look.colour(plan)
        clip = self._render(record, indices, plan, rng)
        if pseudo and draw_other is not None and rng.random() < self.copy_paste:
            other = record if rng.random() < self.paste_twin else draw_other(rng)
            pasted_plan = _passing_by(plan, (other.height, other.width), self.paste_scale, rng)
            for augmentation in self.pseudo_augmentations:
                if augmentation.pasted_too:
                    augmentation(pasted_plan, rng)
            clip.paste(self._render(other, indices, pasted_plan, rng), rng)
            clip.limit(self.max_instances, rng)
        if look:
            look.degrade(clip.image)
        given = None
        if self.drawn_prompts and rng.random() < self.drawn_prompts and record.is_labelled(indices[0]):
            indices = [indices[0], *indices[:-1]]
            clip.repeat_first()
            given = torch.from_numpy(clip.coarse(rng))

        labelled = [record.is_labelled(index) for index in indices]
        return {
            "image": torch.from_numpy(clip.image),
            "masks": torch.from_numpy(clip.masks),
            "given": given,
            "classes": torch.tensor(clip.classes, dtype=torch.int64),
            "labelled": torch.tensor(labelled, dtype=torch.bool),
            "label_set": self.label_sets.get(dataset_name, metadata.label_set),
            "exhaustive": metadata.exhaustive and clip.complete,
            "task": metadata.task,
            "prompted": given is not None or metadata.task == "vos" or not metadata.exhaustive,
            "dataset_name": dataset_name,
            "video_id": record.video_id,
            "frame_indices": indices,
            "height": record.height,
            "width": record.width,
        }

    def _render(self, record: VideoRecord, indices: Sequence[int], plan: ClipPlan, rng: np.random.Generator) -> _Clip:
        """Frames ``indices`` (T) of a record as ``plan`` wants them; only instances that can be seen."""
        image = np.empty((len(indices), 3, *plan.size), np.uint8)
        crowds = {instance.instance_id for instance in record.instances if instance.is_crowd}
        stored: dict[int, Mapping[int, StoredMask]] = {}
        # In temporal order, because a video file is read forwards; each stored frame once.
        last, frame = -1, np.empty(0)
        for t in sorted(range(len(indices)), key=lambda t: indices[t]):
            if indices[t] != last:
                last = indices[t]
                frame = record.read_frame(last)
                stored[last] = record.masks.read(last) if record.masks else {}
            cv2.split(render_frame(frame, plan, t, self.fill), list(image[t]))

        ids = [i for i in dict.fromkeys(i for masks in stored.values() for i in masks) if i not in crowds]
        complete = len(ids) <= self.max_instances
        if not complete:  # before anything is decoded: SA-V has videos of hundreds of masklets
            ids = [ids[i] for i in _some(len(ids), self.max_instances, rng)]
        result = np.zeros((len(ids), len(indices), *plan.size), bool)
        seen: np.ndarray = np.zeros(len(ids), bool)
        for row, instance_id in enumerate(ids):
            for t, index in enumerate(indices):
                mask = stored[index].get(instance_id)
                try:
                    if mask is not None:
                        seen[row] |= render_mask(mask, (record.height, record.width), plan, t, result[row, t])
                except UserError as error:
                    where = f"video {record.name}, frame {record.frames.names[index]}, instance {instance_id}"
                    raise UserError(f"{where}: {error}") from None
        if not seen.all():
            result, ids = result[seen], [instance_id for row, instance_id in enumerate(ids) if seen[row]]
        categories = {instance.instance_id: instance.category_id for instance in record.instances}
        return _Clip(image, result, [categories.get(instance_id, 0) for instance_id in ids], complete)


def _some(count: int, wanted: int, rng: np.random.Generator) -> list[int]:
    """``wanted`` of the numbers below ``count``, ascending."""
    return sorted(rng.choice(count, wanted, replace=False).tolist())


@dataclass
class _Clip:
    image: np.ndarray  # uint8 (T, 3, h, w)
    masks: np.ndarray  # bool (N, T, h, w)
    classes: list[int]  # N
    complete: bool  # no instance was left out

    def repeat_first(self) -> None:
        """The first frame twice, in place of the last one."""
        self.image[1:] = self.image[:-1].copy()
        self.masks[:, 1:] = self.masks[:, :-1].copy()
        visible = np.flatnonzero(self.masks.any(axis=(1, 2, 3)))
        self.masks, self.classes = self.masks[visible], [self.classes[i] for i in visible]

    def coarse(self, rng: np.random.Generator) -> np.ndarray:
        """bool (N, h, w): what a user draws for the objects of the first frame; empty for those that are not in it."""
        drawn = np.zeros_like(self.masks[:, 0])
        for i in np.flatnonzero(self.masks[:, 0].any(axis=(1, 2))):
            drawn[i] = coarse_mask(self.masks[i, 0], rng)
        return drawn

    def limit(self, count: int, rng: np.random.Generator) -> None:
        """Keep ``count`` instances at most."""
        if len(self.classes) > count:
            kept = _some(len(self.classes), count, rng)
            self.masks, self.classes, self.complete = self.masks[kept], [self.classes[i] for i in kept], False

    def paste(self, other: _Clip, rng: np.random.Generator) -> None:
        """Put some of the other clip's objects, one at least, before everything in this one."""
        chosen = np.flatnonzero(rng.random(len(other.classes)) < 0.5)
        if not len(chosen) and other.classes:
            chosen = rng.integers(len(other.classes), size=1)
        pasted = other.masks[chosen]
        cover = np.logical_or.reduce(pasted, axis=0)
        for t in range(len(self.image)):
            self.image[t][:, cover[t]] = other.image[t][:, cover[t]]
        masks = np.concatenate([self.masks & ~cover, pasted])
        classes = np.concatenate([np.asarray(self.classes, np.int64), np.asarray(other.classes, np.int64)[chosen]])
        visible = np.flatnonzero(masks.any(axis=(1, 2, 3)))
        self.masks, self.classes = masks[visible], classes[visible].tolist()


def _passing_by(plan: ClipPlan, size: tuple[int, int], smallest: float, rng: np.random.Generator) -> ClipPlan:
    """A plan for another image of ``size``, on a straight way; one way in three is gone to and fro.

    It is at most as large as the frames of ``plan`` and at least ``smallest`` of that, drawn evenly in the logarithm.
    The way is of any length, so that slow objects are as common as fast ones, and may begin and end outside of the
    frame; the image turns by up to 20 degrees, shears and grows or shrinks by up to a third on it.
    """
    other = ClipPlan.identity(plan.num_frames, size)
    height, width = plan.size
    scale = np.exp(rng.uniform(np.log(smallest), 0.0)) * min(height / size[0], width / size[1])
    path = np.linspace(0.0, 1.0, plan.num_frames)
    if rng.random() < 1 / 3:
        path = np.sin(np.pi * path)
    start, end = rng.uniform(-0.2, 1.2, (2, 2))
    way = start + rng.random() * (end - start) * path[:, None]  # (T, 2), y and x
    turn, shear, growth = rng.uniform(-1.0, 1.0, (3, 1)) * [[np.deg2rad(20)], [0.3], [0.3]] * path
    scale = scale * np.exp(growth)
    matrix = np.zeros((plan.num_frames, 3, 3))
    matrix[:, 0, 0], matrix[:, 0, 1] = scale * np.cos(turn), scale * (np.sin(turn) + shear)
    matrix[:, 1, 0], matrix[:, 1, 1] = -scale * np.sin(turn), scale * np.cos(turn)
    matrix[:, :2, 2] = way[:, ::-1] * (width, height) - matrix[:, :2, :2] @ (size[1] / 2, size[0] / 2)
    matrix[:, 2, 2] = 1.0
    other.transform(matrix, plan.size)
    other.colours = plan.colours
    return other


def _frames_to_draw(record: VideoRecord) -> list[int]:
    """Indices of the frames that carry labels, ascending.

    Raises:
        UserError: there is none.
    """
    frames = record.labelled_frames
    if not frames:
        raise UserError(f"video {record.name}: has no frame with labels (of {record.length} frames)")
    return frames
