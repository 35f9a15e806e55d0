# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""The augmentations that a config asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode

from ausm_d2.data.augmentation.colour import ColourJitter
from ausm_d2.data.augmentation.geometry import (
    CropScalePath,
    LargeScaleJitter,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    ResizeShortestEdge,
    Shrink,
    SoftWarp,
)
from ausm_d2.data.augmentation.plan import Augmentation, ClipPlan
from ausm_d2.errors import UserError


class RandomApply(Augmentation):
    """Apply all of ``augmentations`` with probability ``prob``, or none."""

    def __init__(self, prob: float, augmentations: Sequence[Augmentation]) -> None:
        self.prob = prob
        self.augmentations = augmentations

    def __call__(self, plan: ClipPlan, rng: np.random.Generator) -> None:
        if rng.random() < self.prob:
            for augmentation in self.augmentations:
                augmentation(plan, rng)


_COLOURS = ("brightness", "contrast", "saturation")
_PATHS = {"rotation": RandomRotation, "crop_scale": CropScalePath, "warp": SoftWarp}


def build_augmentations(cfg: CfgNode, pseudo: bool) -> list[Augmentation]:
    """The augmentations of real clips, or of the clips made of one image (``pseudo``), as INPUT.* says."""
    keys = cfg.INPUT.PSEUDO if pseudo else cfg.INPUT
    where = "INPUT.PSEUDO" if pseudo else "INPUT"
    unknown = set(keys.AUGMENTATIONS) - {*_COLOURS, *_PATHS}
    if unknown:
        raise UserError(f"{where}.AUGMENTATIONS: {sorted(unknown)} unknown; known: {[*_COLOURS, *_PATHS]}")
    flips = {"none": None, "horizontal": False, "flip_by_clip": False, "vertical": True}
    if cfg.INPUT.RANDOM_FLIP not in flips:
        raise UserError(f"INPUT.RANDOM_FLIP: {cfg.INPUT.RANDOM_FLIP!r} found, one of {list(flips)} expected")

    chain: list[Augmentation] = []
    if keys.CROP.ENABLED:
        resize = ResizeShortestEdge(cfg.INPUT.CROP.RESIZE, keys.MAX_SIZE_TRAIN * 4)
        crop = RandomCrop(keys.CROP.TYPE, keys.CROP.SIZE, cfg.INPUT.CROP.DRIFT)
        chain.append(RandomApply(cfg.INPUT.CROP.PROB, [resize, crop]))
    moves: list[Augmentation] = [_PATHS[name]() for name in keys.AUGMENTATIONS if name in _PATHS]
    vertical = flips[cfg.INPUT.RANDOM_FLIP]
    flip: list[Augmentation] = [] if vertical is None else [RandomFlip(vertical=vertical)]
    if pseudo and cfg.INPUT.LSJ_AUG.ENABLED:
        if "warp" in keys.AUGMENTATIONS:
            raise UserError(
                "INPUT.PSEUDO.AUGMENTATIONS: 'warp' goes by the size of the padded frame, which INPUT.LSJ_AUG makes "
                "larger than the picture; expected one of the two"
            )
        lsj = cfg.INPUT.LSJ_AUG
        chain += [*flip, *moves, LargeScaleJitter(lsj.IMAGE_SIZE, lsj.MIN_SCALE, lsj.MAX_SCALE)]
    else:
        sizes = ResizeShortestEdge(keys.MIN_SIZE_TRAIN, keys.MAX_SIZE_TRAIN, keys.MIN_SIZE_TRAIN_SAMPLING)
        shrink: list[Augmentation] = []
        if cfg.INPUT.SHRINK.PROB:
            shrink.append(RandomApply(cfg.INPUT.SHRINK.PROB, [Shrink(cfg.INPUT.SHRINK.SMALLEST)]))
        chain += [sizes, *shrink, *moves, *flip]
    colours = [name for name in keys.AUGMENTATIONS if name in _COLOURS]
    if colours:
        chain.append(ColourJitter(colours, drift=pseudo))
    return chain
