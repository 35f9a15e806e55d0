# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Maps a video record to a training item.

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

from ausm_d2.data.augmentation.build import build_augmentations
from ausm_d2.data.augmentation.looks import Looks
from ausm_d2.data.augmentation.plan import Augmentation, ClipPlan
from ausm_d2.data.augmentation.render import render_frame, render_mask
from ausm_d2.data.catalog.base import chosen_label_sets
from ausm_d2.data.clip_sampler import ClipSampler
from ausm_d2.data.coarse import coarse_mask
from ausm_d2.data.items import TrainingClip
from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import StoredMask


class ClipMapper:
    """Samples a clip from a record (from an image: a pseudo-video), augments it and converts it to tensors."""

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
            samplers: clip sampler by name of the data set.
            augmentations: for clips from videos, applied in this order.
            pseudo_augmentations: for clips from images.
            looks: draws the degradation of a clip; None: no degradation.
            drawn_prompts: probability that a clip is prompted by boxes, clicks or scribbles.
            copy_paste: probability of pasting moving objects of another image into a clip from an image.
            paste_twin: probability that the other image is the same one.
            paste_scale: minimum size of the other image, relative to the largest that fits.
            max_instances: if a clip has more, a random subset of this size is kept, and the clip is not exhaustive.
            label_sets: by name of the data set, if it differs from the data set's own.
            fill: RGB outside the stored frame; the mean pixel, which is normalised to 0.
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
        names = cfg.DATASETS.TRAIN
        lengths = _by_data_set(cfg, "SAMPLING_FRAME_NUMS")
        ranges = _by_data_set(cfg, "SAMPLING_FRAME_RANGES")
        red, green, blue = (float(round(value)) for value in cfg.MODEL.PIXEL_MEAN)
        return {
            "samplers": {name: ClipSampler(cfg, *of_one) for name, *of_one in zip(names, lengths, ranges, strict=True)},
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
            dataset_name: data set of the record.
            record: a video, or an image as a one-frame video.
            rng: source of all randomness.
            draw_other: draws another record of the data set, for copy-paste.

        Returns:
            The training item.

        Raises:
            UserError: if a frame or mask cannot be read, or has another size than the video.
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
            self._paste(clip, other, indices, plan, rng)
        if look:
            look.degrade(clip.image)
        given = None
        drawn = self.drawn_prompts if len(indices) > 1 else 0.0  # a clip of one frame would hold nothing to predict
        if drawn and rng.random() < drawn and record.is_labelled(indices[0]):
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

    def _paste(
        self, clip: _Clip, other: VideoRecord, indices: Sequence[int], plan: ClipPlan, rng: np.random.Generator
    ) -> None:
        """Copy-paste: moving objects of another image in front of a clip."""
        pasted_plan = _passing_by(plan, (other.height, other.width), self.paste_scale, rng)
        for augmentation in self.pseudo_augmentations:
            if augmentation.pasted_too:
                augmentation(pasted_plan, rng)
        clip.paste(self._render(other, indices, pasted_plan, rng), rng)
        clip.limit(self.max_instances, rng)

    def _render(self, record: VideoRecord, indices: Sequence[int], plan: ClipPlan, rng: np.random.Generator) -> _Clip:
        """Render frames ``indices`` (T) of a record by ``plan``, with the instances that are visible in them."""
        image = np.empty((len(indices), 3, *plan.size), np.uint8)
        crowds = {instance.instance_id for instance in record.instances if instance.is_crowd}
        stored: dict[int, Mapping[int, StoredMask]] = {}
        # In temporal order, because video files are decoded forwards; each stored frame is read once.
        last, frame = -1, np.empty(0)
        for t in sorted(range(len(indices)), key=lambda t: indices[t]):
            if indices[t] != last:
                last = indices[t]
                frame = record.read_frame(last)
                stored[last] = record.masks.read(last) if record.masks else {}
            cv2.split(render_frame(frame, plan, t, self.fill), list(image[t]))

        ids = [i for i in dict.fromkeys(i for masks in stored.values() for i in masks) if i not in crowds]
        complete = len(ids) <= self.max_instances
        if not complete:  # before decoding masks: SA-V has videos with hundreds of masklets
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


def _by_data_set(cfg: CfgNode, key: str) -> list[int] | list[None]:
    """The numbers of a key of INPUT that has one per data set of DATASETS.TRAIN, or none.

    Raises:
        UserError: it has another number of them.
    """
    numbers, count = list(cfg.INPUT[key]), len(cfg.DATASETS.TRAIN)
    if numbers and len(numbers) != count:
        raise UserError(f"INPUT.{key}: {len(numbers)} numbers for the {count} data sets of DATASETS.TRAIN")
    return numbers or [None] * count


def _some(count: int, wanted: int, rng: np.random.Generator) -> list[int]:
    """``wanted`` of the numbers below ``count``, ascending."""
    return sorted(rng.choice(count, wanted, replace=False).tolist())


@dataclass
class _Clip:
    image: np.ndarray  # uint8 (T, 3, h, w)
    masks: np.ndarray  # bool (N, T, h, w)
    classes: list[int]  # N
    complete: bool  # no instance was dropped

    def repeat_first(self) -> None:
        """Show the first frame twice and drop the last one."""
        self.image[1:] = self.image[:-1].copy()
        self.masks[:, 1:] = self.masks[:, :-1].copy()
        visible = np.flatnonzero(self.masks.any(axis=(1, 2, 3)))
        self.masks, self.classes = self.masks[visible], [self.classes[i] for i in visible]

    def coarse(self, rng: np.random.Generator) -> np.ndarray:
        """bool (N, h, w): simulated user drawings of the objects in the first frame; empty for objects not in it."""
        drawn = np.zeros_like(self.masks[:, 0])
        for i in np.flatnonzero(self.masks[:, 0].any(axis=(1, 2))):
            drawn[i] = coarse_mask(self.masks[i, 0], rng)
        return drawn

    def limit(self, count: int, rng: np.random.Generator) -> None:
        """Keep at most ``count`` instances, a random subset."""
        if len(self.classes) > count:
            kept = _some(len(self.classes), count, rng)
            self.masks, self.classes, self.complete = self.masks[kept], [self.classes[i] for i in kept], False

    def paste(self, other: _Clip, rng: np.random.Generator) -> None:
        """Paste a random subset of the other clip's objects, at least one, in front of this clip."""
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
    """A plan that moves another image of ``size`` along a straight path; one time in three back and forth.

    Its size relative to the frames of ``plan`` is log-uniform between ``smallest`` and 1. The length of the path is
    random, so that slow objects are as common as fast ones; it may begin and end outside the frame. Along the path the
    image rotates by up to 20 degrees, is sheared, and scales by up to a third.
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
    """Indices of the labelled frames, ascending.

    Raises:
        UserError: if there are none.
    """
    frames = record.labelled_frames
    if not frames:
        raise UserError(f"video {record.name}: has no frame with labels (of {record.length} frames)")
    return frames
