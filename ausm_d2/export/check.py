# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Compares an exported step with PyTorch on a video, and their speeds.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ausm_d2.export.runner import OnnxResult, OnnxStream
from ausm_d2.export.slots import mask_iou
from ausm_d2.streaming.predictor import VideoPredictor
from ausm_d2.streaming.result import FrameResult

LEAST = 0.99  # mask IoU


class Comparison(NamedTuple):
    """What was found."""

    frames: int
    objects: int
    mean_iou: float  # over all frames and objects; 0 for an object that only one of the two has
    least_iou: float
    pytorch_ms: float  # median time of a frame
    onnx_ms: float

    def __str__(self) -> str:
        return (
            f"{self.frames} frames, {self.objects} objects: mask IoU of PyTorch and ONNX {self.mean_iou:.4f} in the "
            f"mean, {self.least_iou:.4f} at least; a frame takes {self.pytorch_ms:.1f} and {self.onnx_ms:.1f} ms"
        )


def compare(
    predictor: VideoPredictor,
    file: Path,
    frames: Iterable[np.ndarray],
    prompts: Mapping[int, np.ndarray] | None,
    *,
    threads: int,
) -> Comparison:
    """Run both, frame by frame in turn.

    Args:
        predictor: with the settings of the export.
        frames: uint8 (H, W, 3), BGR.
        prompts: bool (H, W) masks of the first frame by object id; None: detect objects.
        threads: of onnxruntime.
    """
    exported = OnnxStream(file, detect=prompts is None, threads=threads)
    session = None
    overlaps: list[float] = []
    ids: set[int] = set()
    seconds: list[tuple[float, float]] = []
    for frame in frames:
        begin = time.perf_counter()
        if session is None:
            session = predictor.start(frame, prompts)
        else:
            session.step(frame)
        middle = time.perf_counter()
        result = exported.step(frame, prompts if exported.frame_index < 0 else None)
        seconds.append((middle - begin, time.perf_counter() - middle))
        overlaps += _overlaps(session.result, result)
        ids |= {*result.track_ids}
    pytorch, onnx = np.median(np.array(seconds[1:] or seconds), axis=0) * 1e3  # the first frame warms up
    found = np.array(overlaps or [1.0])
    return Comparison(len(seconds), len(ids), float(found.mean()), float(found.min()), float(pytorch), float(onnx))


def _overlaps(ours: FrameResult, other: OnnxResult) -> list[float]:
    """IoU of every object that either has; 1 if both masks are empty."""
    one = dict(zip(ours.instances.track_ids.tolist(), ours.instances.pred_masks.numpy(), strict=True))
    two = dict(zip(other.track_ids, other.masks, strict=True))
    found = []
    for track_id in one.keys() | two.keys():
        a, b = one.get(track_id), two.get(track_id)
        if a is None or b is None:
            found.append(0.0)
        else:
            found.append(float(mask_iou(a[None], b[None])[0, 0]) if a.any() or b.any() else 1.0)
    return found
