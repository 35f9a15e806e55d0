# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Some of the frames of a video as a video of its own.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ausm_d2.data.mask_sources import FirstFrames
from ausm_d2.data.video import FrameSource, MaskSource, VideoRecord
from ausm_d2.masks.rle import StoredMask


@dataclass(frozen=True)
class _EveryNth:
    """Every ``step``-th frame of a video; frames and masks alike."""

    frames: FrameSource
    masks: MaskSource | None
    step: int

    @property
    def names(self) -> list[str]:
        return self.frames.names[:: self.step]

    def __len__(self) -> int:
        return -(-len(self.frames) // self.step)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        return self.frames[index * self.step]

    def read(self, index: int) -> Mapping[int, StoredMask]:
        """The masks of the frame by instance id."""
        assert self.masks is not None
        return self.masks.read(index * self.step)


def every_nth(record: VideoRecord, step: int) -> VideoRecord:
    """Every ``step``-th frame of a video, from the first on, as a video of its own.

    Objects are prompted in the first of these frames that shows them.
    """
    some = _EveryNth(record.frames, record.masks, step)
    labelled = None if record.labelled is None else record.labelled[::step]
    frames = [t for t in range(len(some)) if labelled is None or labelled[t]]
    return VideoRecord(
        video_id=record.video_id,
        name=record.name,
        height=record.height,
        width=record.width,
        frames=some,
        instances=list(record.instances),
        masks=None if record.masks is None else some,
        labelled=labelled,
        prompt_frames=None if record.prompt_frames is None else FirstFrames(some, frames),
    )
