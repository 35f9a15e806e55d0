# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Augmentation of clips: first planned for all frames, then applied once per frame to pixels and masks alike.

An augmentation changes a :class:`ClipPlan`: one geometric matrix and one colour matrix per frame. The composed plan is
rendered in a single pass, so masks are decoded only where the output shows them and nothing is resampled twice.
"""

from ausm_d2.data.augmentation.build import RandomApply, build_augmentations
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
from ausm_d2.data.augmentation.looks import Look, Looks
from ausm_d2.data.augmentation.plan import Augmentation, ClipPlan
from ausm_d2.data.augmentation.render import render_frame, render_mask

__all__ = [
    "Augmentation",
    "ClipPlan",
    "ColourJitter",
    "CropScalePath",
    "LargeScaleJitter",
    "Look",
    "Looks",
    "RandomApply",
    "RandomCrop",
    "RandomFlip",
    "RandomRotation",
    "ResizeShortestEdge",
    "Shrink",
    "SoftWarp",
    "build_augmentations",
    "render_frame",
    "render_mask",
]
