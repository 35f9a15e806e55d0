# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Baselines for evaluation. They are called like a model in evaluation mode: test items -> results.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of the video
    P: tracks; R: detections of a frame
    K: classes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor

from ausm_d2.data.items import TestVideo, TrackEntry, VideoResult
from ausm_d2.masks.rle import Rle, encode


class Reference(ABC):
    """A baseline; ``name`` is shown in tables."""

    name: str

    def __call__(self, batched_inputs: list[TestVideo]) -> list[VideoResult]:
        """Test items (whole videos) -> results, as from :class:`~ausm_d2.meta_arch.AUSM`."""
        return [self.segment(item) for item in batched_inputs]

    @abstractmethod
    def segment(self, item: TestVideo) -> VideoResult:
        """The result of one test item."""


class CopiedMask(Reference):
    """Copies the prompt mask to all later frames."""

    name = "first mask copied"

    def segment(self, item: TestVideo) -> VideoResult:
        record = item["record"]
        objects: dict[int, list[Rle | None]] = {}
        for frame, masks in record.prompts().items():
            for object_id, mask in masks.items():
                objects[object_id] = [None] * frame + [encode(mask)] * (record.length - frame)
        return {"video_id": record.video_id, "objects": objects}


class FlowMasks:
    """Masks that are warped from frame to frame by dense optical flow (OpenCV's DIS, medium preset).

    The soft coverage is warped, without rounding between frames, so that rounding errors do not accumulate.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._coverage: dict[int, np.ndarray] = {}  # float32 (H, W) in 0..1, by object
        self._previous: np.ndarray | None = None  # uint8 (H, W), grey

    def step(self, frame: np.ndarray) -> None:
        """The next frame, uint8 (H, W, 3), RGB."""
        current = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if self._coverage and self._previous is not None:
            height, width = current.shape
            pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)  # (H, W, 2), x and y
            # Backward flow: the origin of each pixel in the previous frame.
            origin = (pixels + self._flow.calc(current, self._previous, None)).astype(np.float32)
            self._coverage = {i: cv2.remap(mask, origin, None, cv2.INTER_LINEAR) for i, mask in self._coverage.items()}
        self._previous = current

    def give(self, masks: Mapping[int, np.ndarray]) -> None:
        """Masks of the latest frame, bool (H, W), by object."""
        self._coverage |= {object_id: mask.astype(np.float32) for object_id, mask in masks.items()}

    def masks(self) -> dict[int, np.ndarray]:
        """Those in the latest frame, bool (H, W), by object."""
        return {object_id: soft >= 0.5 for object_id, soft in self._coverage.items()}


class FlowMask(Reference):
    """Warps the prompt mask from frame to frame; see :class:`FlowMasks`."""

    name = "mask carried by DIS optical flow"

    def segment(self, item: TestVideo) -> VideoResult:
        record = item["record"]
        prompts = record.prompts()
        objects: dict[int, list[Rle | None]] = {
            object_id: [None] * record.length for masks in prompts.values() for object_id in masks
        }
        carried = FlowMasks()
        for frame in range(record.length):
            carried.step(record.read_frame(frame))
            carried.give(prompts.get(frame, {}))
            for object_id, mask in carried.masks().items():
                if mask.any():
                    objects[object_id][frame] = encode(mask)
        return {"video_id": record.video_id, "objects": objects}


@dataclass
class _Track:
    """Linked detections."""

    begun: int  # frame of the first detection
    last_mask: Rle
    segmentations: list[Rle | None]  # T
    class_sums: Tensor  # (K): class probabilities, summed over the detections


class Detector(Protocol):
    """The interface :class:`FrameByFrame` needs; see :class:`ausm_d2.streaming.single_frames.SingleFrames`."""

    def detect(self, frame: np.ndarray, item: TestVideo) -> tuple[list[Rle], Tensor]:
        """R masks and class probabilities (R, K) for a single frame of a test item, uint8 (H, W, 3) RGB."""

    def best_tracks(
        self, item: TestVideo, masks: dict[int, list[Rle | None]], scores: dict[int, Tensor]
    ) -> list[TrackEntry]:
        """The result entries of a test item, best first, from T masks and (K) class scores per track."""


class FrameByFrame(Reference):
    """The same weights on single frames, without history; detections are linked by mask IoU.

    Detections are assigned to tracks (Hungarian) by IoU with the track's last mask, however old. A track's score is the
    mean over all frames since its start, including those without a detection, as for the model's own tracks. Limiting
    the age of masks, larger minimum overlaps and means over detections alone scored lower.
    """

    name = "frame by frame, IoU linking"

    def __init__(self, detector: Detector, *, min_overlap: float = 0.1) -> None:
        """
        Args:
            detector: the model.
            min_overlap: minimum IoU for a detection to continue a track.
        """
        self.detector = detector
        self.min_overlap = min_overlap

    def segment(self, item: TestVideo) -> VideoResult:
        record = item["record"]
        tracks: list[_Track] = []
        for frame in range(record.length):
            masks, probabilities = self.detector.detect(record.read_frame(frame), item)
            self._link(tracks, frame, masks, probabilities, record.length)
        numbered = dict(enumerate(tracks, 1))
        return {
            "video_id": record.video_id,
            "tracks": self.detector.best_tracks(
                item,
                {track_id: track.segmentations for track_id, track in numbered.items()},
                {track_id: track.class_sums / (record.length - track.begun) for track_id, track in numbered.items()},
            ),
        }

    def _link(self, tracks: list[_Track], frame: int, masks: list[Rle], probabilities: Tensor, length: int) -> None:
        """Link the detections of a frame to ``tracks``; unmatched ones start new tracks."""
        from scipy.optimize import linear_sum_assignment  # takes a second to import

        continued: dict[int, _Track] = {}
        if tracks and masks:
            overlaps = coco_mask.iou([track.last_mask for track in tracks], masks, [0] * len(masks))  # (P, R)
            overlaps = np.where(overlaps >= self.min_overlap, overlaps, 0)
            pairs = zip(*linear_sum_assignment(overlaps, maximize=True), strict=True)
            continued = {row: tracks[place] for place, row in pairs if overlaps[place, row] > 0}
        for row, mask in enumerate(masks):
            if row in continued:
                track = continued[row]
                track.last_mask = mask
                track.class_sums = track.class_sums + probabilities[row]
            else:
                track = _Track(frame, mask, [None] * length, probabilities[row])
                tracks.append(track)
            track.segmentations[frame] = mask


def references(task: str, detector: Detector) -> dict[str, Reference]:
    """The baselines for a task, by a key that is usable in file names; empty for images."""
    if task == "vos":
        return {"first_mask": CopiedMask(), "optical_flow": FlowMask()}
    if task == "vis":
        return {"frame_by_frame": FrameByFrame(detector)}
    return {}
