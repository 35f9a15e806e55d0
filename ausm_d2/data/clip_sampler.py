# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Samples the frames of a training clip.

Shape shorthand:
    T: frames of a clip
    L: labelled frames of a video, from which a clip is drawn
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode, configurable

from ausm_d2.errors import UserError


class ClipSampler:
    """Draws the frames of a clip.

    Without a stride, a first frame is drawn, then T - 1 frames without replacement from the window of ``frame_range``
    frames to either side of it; they are sorted (as in Mask2Former-video and VITA). With a stride, the frames are
    evenly spaced. A window that exceeds the video is shifted inside. A video of fewer than T frames is
    played forwards and backwards until the clip is full; a single frame gives a still clip.
    """

    @configurable
    def __init__(
        self,
        *,
        num_frames: int,
        frame_range: int = 20,
        stride: int = 0,
        reverse: float = 0.0,
    ) -> None:
        """
        Args:
            num_frames: T, at least 1.
            frame_range: frames to either side of the first one drawn, enlarged to at least T frames in all. Without a
                stride only.
            stride: maximum distance between neighbouring frames, drawn per clip from 1..stride; 0: no stride.
            reverse: probability of reversing the clip.
        """
        if num_frames < 1 or frame_range < 0 or stride < 0 or not 0 <= reverse <= 1:
            raise UserError(
                "INPUT.SAMPLING_FRAME_*: NUM >= 1, RANGE >= 0, STRIDE >= 0 and REVERSE in [0, 1] expected, found "
                f"{num_frames}, {frame_range}, {stride}, {reverse}"
            )
        self.num_frames = num_frames
        self.frame_range = frame_range
        self.stride = stride
        self.reverse = reverse

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_frames: int | None = None, frame_range: int | None = None
    ) -> dict[str, object]:
        return {
            "num_frames": cfg.INPUT.SAMPLING_FRAME_NUM if num_frames is None else num_frames,
            "frame_range": cfg.INPUT.SAMPLING_FRAME_RANGE if frame_range is None else frame_range,
            "stride": cfg.INPUT.SAMPLING_FRAME_STRIDE,
            "reverse": cfg.INPUT.SAMPLING_FRAME_REVERSE,
        }

    def __call__(self, candidates: Sequence[int], rng: np.random.Generator) -> list[int]:
        """Draw T of the L ascending frame indices ``candidates`` (L >= 1)."""
        length, count = len(candidates), self.num_frames
        if length == 0:
            raise ValueError("no frame to draw a clip from")
        if length < count:
            cycle = [*range(length), *range(length - 2, 0, -1)]
            start = int(rng.integers(len(cycle)))
            picked = [cycle[(start + i) % len(cycle)] for i in range(count)]
        elif self.stride:
            stride = int(rng.integers(1, self.stride + 1))
            if count > 1:
                stride = min(stride, (length - 1) // (count - 1))
            start = int(rng.integers(length - stride * (count - 1)))
            picked = [start + i * stride for i in range(count)]
        else:
            first = int(rng.integers(length))
            width = min(length, max(2 * self.frame_range + 1, count))
            low = min(max(first - width // 2, 0), length - width)
            others = rng.choice(width - 1, count - 1, replace=False) + low
            others += others >= first
            picked = sorted([first, *others.tolist()])
        if self.reverse and rng.random() < self.reverse:
            picked.reverse()
        return [int(candidates[i]) for i in picked]
