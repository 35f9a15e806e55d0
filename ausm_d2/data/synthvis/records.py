# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Procedural videos as records of a data set.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of the video
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ausm_d2.data.synthvis.renderer import Video
from ausm_d2.data.synthvis.scene import HEIGHT, NUM_FRAMES, WIDTH, Spec, cast_of
from ausm_d2.data.video import Instance, VideoRecord
from ausm_d2.errors import UserError


@lru_cache(maxsize=4)
def _video(spec: Spec, index: int) -> Video:
    return Video(spec, index)


@lru_cache(maxsize=64)
def _rendered(spec: Spec, index: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    return _video(spec, index).render(frame)


@lru_cache(maxsize=4096)
def _first_frames(spec: Spec, index: int) -> tuple[tuple[int, int], ...]:
    """Instance ids and the first frame in which each is visible. Frames are rendered until all instances were seen."""
    first: dict[int, int] = {}
    count = len(cast_of(spec, index).classes)
    for frame in range(spec.num_frames):
        for instance_id in SynthMasks(spec, index).read(frame):
            first.setdefault(instance_id, frame)
        if len(first) == count:
            break
    return tuple(first.items())


@dataclass(frozen=True)
class SynthFrames:
    """``FrameSource`` of one procedural video."""

    spec: Spec
    index: int

    @property
    def names(self) -> list[str]:
        """Frame names (T): "00000", "00001", ..."""
        return [f"{frame:05d}" for frame in range(len(self))]

    def __len__(self) -> int:
        return self.spec.num_frames

    def __getitem__(self, index: int) -> np.ndarray:
        """Frame ``index`` as uint8 (H, W, 3), RGB.

        Raises:
            IndexError: the video has no such frame.
        """
        return _rendered(self.spec, self.index, _checked(self.spec, index))[0].copy()


@dataclass(frozen=True)
class SynthMasks:
    """``MaskSource`` of one procedural video: exact masks of what is visible."""

    spec: Spec
    index: int

    def ids(self, index: int) -> np.ndarray:
        """Instance id of every pixel of frame ``index``, uint8 (H, W), 0 where there is none."""
        return _rendered(self.spec, self.index, _checked(self.spec, index))[1].copy()

    def read(self, index: int) -> dict[int, np.ndarray]:
        """Bool masks (H, W) of frame ``index`` by instance id; a hidden instance has no entry.

        Raises:
            IndexError: the video has no such frame.
        """
        owner = _rendered(self.spec, self.index, _checked(self.spec, index))[1]
        return {int(i): owner == i for i in np.flatnonzero(np.bincount(owner.ravel())[1:]) + 1}


def _checked(spec: Spec, frame: int) -> int:
    if not 0 <= frame < spec.num_frames:
        raise IndexError(f"frame {frame} of a video of {spec.num_frames} frames")
    return frame


class SynthVis(Sequence[VideoRecord]):
    """Procedural videos as records. Record i depends neither on earlier accesses nor on the process.

    Args:
        seed: 0 or more. Different seeds give different videos of the same distribution.
        num_videos: length of the sequence.
        num_frames: T, at least 2.
        complete: drop instances that are visible in no frame, and set ``prompt_frames`` to the first visible frame of
            each. This renders frames of every video once in a process, so it is for evaluation sets.

    Raises:
        UserError: if the seed is negative, or there are fewer than 2 frames.
    """

    def __init__(self, seed: int, num_videos: int, num_frames: int = NUM_FRAMES, *, complete: bool = False) -> None:
        if seed < 0:
            raise UserError(f"synthvis: seed {seed}, expected 0 or more")
        if num_frames < 2:
            raise UserError(f"synthvis: videos of {num_frames} frames, expected 2 or more")
        self.spec = Spec(seed, num_frames)
        self.num_videos = num_videos
        self.complete = complete

    def __len__(self) -> int:
        return self.num_videos

    def __getitem__(self, index: int) -> VideoRecord:  # type: ignore[override]
        if not 0 <= index < self.num_videos:
            raise IndexError(f"video {index} of {self.num_videos}")
        masks = SynthMasks(self.spec, index)
        instances = [Instance(i + 1, category) for i, category in enumerate(cast_of(self.spec, index).classes)]
        first: dict[int, int] | None = None
        if self.complete:
            first = dict(_first_frames(self.spec, index))
            instances = [instance for instance in instances if instance.instance_id in first]
        return VideoRecord(
            video_id=index,
            name=f"synth_{index:05d}",
            height=HEIGHT,
            width=WIDTH,
            frames=SynthFrames(self.spec, index),
            instances=instances,
            masks=masks,
            prompt_frames=first,
        )

    def __iter__(self) -> Iterator[VideoRecord]:
        return (self[index] for index in range(self.num_videos))
