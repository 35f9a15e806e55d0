# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""How videos are streamed: the keys TEST.AUSM and INPUT.*_TEST of the config.

Shape shorthand:
    H, W: frame size in pixels; H_in, W_in: the network's input size, before padding
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from torch import Tensor

from ausm_d2.data.items import TestVideo
from ausm_d2.errors import UserError

_LARGEST_SCALE = 1.5  # of the input's sides, for small objects: the cost of a frame grows with its square
_NO_RULES: dict[str, Any] = {
    "hide_below": 0.0,
    "birth_iou": 1.0,
    "birth_cells": 0,
    "duplicate_overlap": 1.0,
    "exclusive": False,
    "reach": 0.0,
    "appearance": 0.0,
    "min_age": 1,
}


@dataclass
class VideoSettings:
    """See the keys of the same names in the config."""

    min_size: int  # short side of the network's input, pixels; 0: as stored
    max_size: int  # maximum of the long side
    small_cells: int  # stride-4 cells that the smallest object prompted at the start should cover; 0: no enlargement
    fg_threshold: float
    fg_thresholds: Mapping[str, float]  # of data sets that have another one
    topk: int | None  # None: the data set's
    topk_scope: str  # "video" or "frame"
    track_score: str  # "mean", "visible", "mask" or "max"
    hide_below: float  # unprompted rows with a lower foreground probability are hidden
    birth_iou: float  # a detection with a larger mask IoU with a tracked row does not start a track
    birth_cells: int  # a detection with fewer stride-4 cells does not start a track
    duplicate_overlap: float  # the less confident of two tracks ends if they share more of the smaller mask
    exclusive: bool  # a cell belongs to one track at most
    reach: float  # distance that found masks may spread per frame, in square roots of their area; 0: any
    appearance: float  # found masks that are less like those before, by cosine, are hidden; 0: none
    min_age: int  # age in frames from which a found track is returned
    at_once: float  # foreground probability from which it is returned at once
    prompt_label_set: str  # of prompted rows
    amp: bool  # bfloat16 autocast
    cuda_graph: bool  # capture the step (on CUDA only)
    state_dtype: torch.dtype  # in which the state between frames is stored: float32 or bfloat16
    seed: int
    repeat: int
    spatial_traversal: bool

    @classmethod
    def from_config(cls, cfg: CfgNode) -> VideoSettings:
        """The settings of a config.

        Raises:
            UserError: a key with an invalid value.
        """
        _check(cfg)
        test = cfg.TEST.AUSM
        return cls(
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            small_cells=test.SMALL_PROMPT_CELLS,
            fg_threshold=test.FG_THRESHOLD,
            fg_thresholds={str(name): float(value) for name, value in test.FG_THRESHOLDS},
            topk=test.TOPK or None,
            topk_scope=test.TOPK_SCOPE,
            track_score=test.TRACK_SCORE,
            hide_below=test.HIDE_BELOW,
            birth_iou=test.BIRTH_IOU,
            birth_cells=test.BIRTH_CELLS,
            duplicate_overlap=test.DUPLICATE_OVERLAP,
            exclusive=test.EXCLUSIVE,
            reach=test.REACH,
            appearance=test.APPEARANCE,
            min_age=test.MIN_AGE,
            at_once=test.AT_ONCE,
            prompt_label_set=cfg.MODEL.AUSM.PROMPT_LABEL_SET,
            amp=test.AMP,
            cuda_graph=test.CUDA_GRAPH,
            state_dtype=getattr(torch, test.STATE_DTYPE),
            seed=test.SEED,
            repeat=test.REPEAT,
            spatial_traversal=test.SPATIAL_TRAVERSAL,
        )

    def for_item(self, item: TestVideo) -> VideoSettings:
        """The settings for a test item: its data set's threshold and, unless the config sets one, its ``topk``.

        For images all rules for tracks (gates.py) except BIRTH_IOU are off: COCO's AP ranks up to 100 detections per
        image, as Mask2Former returns them.
        """
        threshold = self.fg_thresholds.get(item["dataset_name"], self.fg_threshold)
        settings = self
        if item.get("task") == "image":
            settings = replace(self.without_rules(), birth_iou=self.birth_iou)
        return replace(settings, fg_threshold=threshold, topk=self.topk or item["topk"])

    def without_rules(self) -> VideoSettings:
        """The settings with the rules of tracks (gates.py) off."""
        return replace(self, **_NO_RULES)

    def input_size(self, size: tuple[int, int], given: Iterable[np.ndarray] = ()) -> tuple[int, int]:
        """(H_in, W_in) of a video; larger if a small object is prompted at its start.

        Args:
            size: (H, W) of its frames.
            given: bool (H, W) masks prompted at the first frame.
        """
        if self.min_size <= 0:
            return size
        height, width = ResizeShortestEdge.get_output_shape(*size, self.min_size, self.max_size)
        areas = [float(mask.mean()) for mask in given if mask.any()] if self.small_cells else []
        if areas:
            cells = min(areas) * height * width / 16
            scale = min(max(1.0, (self.small_cells / cells) ** 0.5), _LARGEST_SCALE)
            sizes = round(self.min_size * scale), round(self.max_size * scale)
            height, width = ResizeShortestEdge.get_output_shape(*size, *sizes)
        return height, width

    def resize(self, frame: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """uint8 (H, W, 3) -> uint8 (3, H_in, W_in), of ``size`` (H_in, W_in); default: :meth:`input_size`."""
        height, width = size or self.input_size((frame.shape[0], frame.shape[1]))
        if (height, width) != frame.shape[:2]:
            frame = cv2.resize(frame, (width, height), interpolation=_interpolation(height, frame.shape[0]))
        return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))

    def resize_mask(self, mask: np.ndarray, size: tuple[int, int]) -> Tensor:
        """bool (H, W) -> bool (H_in, W_in) = ``size``: pixels that are at least half covered; if there are none, the
        pixels of largest coverage."""
        if mask.shape != size:
            interpolation = _interpolation(size[0], mask.shape[0])
            coverage = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=interpolation)
            mask = coverage >= 0.5
            if not mask.any():
                mask = (coverage == coverage.max()) & (coverage > 0)
        return torch.from_numpy(mask)


def _interpolation(new: int, old: int) -> int:
    return cv2.INTER_AREA if new < old else cv2.INTER_LINEAR


def _check(cfg: CfgNode) -> None:
    """Raise a ``UserError`` that names a key with an invalid value."""
    test = cfg.TEST.AUSM
    choices = {
        "TOPK_SCOPE": ("video", "frame"),
        "TRACK_SCORE": ("mean", "visible", "mask", "max"),
        "STATE_DTYPE": ("float32", "bfloat16"),
    }
    for key, known in choices.items():
        if test[key] not in known:
            raise UserError(f"TEST.AUSM.{key}: '{test[key]}' is not one of {', '.join(known)}")
    for key, what in (
        ("FG_THRESHOLD", "a probability"),
        ("HIDE_BELOW", "a probability"),
        ("BIRTH_IOU", "an IoU"),
        ("AT_ONCE", "a probability"),
        ("APPEARANCE", "a cosine"),
        ("DUPLICATE_OVERLAP", "a part of a mask"),
    ):
        if not 0 <= test[key] <= 1:
            raise UserError(f"TEST.AUSM.{key}: {test[key]}, expected {what}, from 0 to 1")
    for entry in test.FG_THRESHOLDS:
        good = isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], int | float)
        if not good or not 0 <= entry[1] <= 1:
            raise UserError(f"TEST.AUSM.FG_THRESHOLDS: {entry!r}, expected [data set, a probability from 0 to 1]")
    for key, value, least in (
        ("TEST.AUSM.TOPK", test.TOPK, 0),
        ("TEST.AUSM.BIRTH_CELLS", test.BIRTH_CELLS, 0),
        ("TEST.AUSM.REACH", test.REACH, 0),
        ("TEST.AUSM.MIN_AGE", test.MIN_AGE, 1),
        ("TEST.AUSM.REPEAT", test.REPEAT, 1),
        ("INPUT.MIN_SIZE_TEST", cfg.INPUT.MIN_SIZE_TEST, 0),
        ("TEST.AUSM.SMALL_PROMPT_CELLS", test.SMALL_PROMPT_CELLS, 0),
    ):
        if value < least:
            raise UserError(f"{key}: {value}, expected {least} or more")
