# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Types of the dictionaries passed between loaders, model and evaluators.

Shape shorthand:
    T: frames of the clip or video
    N: instances visible in the clip
    H, W: frame size in pixels; h, w: size of an augmented frame
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor

from ausm_d2.data.video import VideoRecord
from ausm_d2.masks.rle import Rle


class TrainingClip(TypedDict):
    """A training item: output of the mapper, input of the model in training mode."""

    image: Tensor  # uint8 (T, 3, h, w), RGB
    masks: Tensor  # bool (N, T, h, w); row i is instance i in every frame
    given: NotRequired[Tensor | None]
    """bool (N, h, w): coarse prompt masks for the first frame, which is shown twice; empty: object not in it."""
    classes: Tensor  # int64 (N), in the label set
    labelled: Tensor  # bool (T): frames with labels
    label_set: str
    exhaustive: bool  # every object of the label set is labelled
    task: str  # "vis", "vos" or "image"
    prompted: bool  # train as prompted only
    dataset_name: str
    video_id: int | str
    frame_indices: list[int]  # T
    height: int  # H
    width: int  # W


class TestVideo(TypedDict):
    """A test item: output of the test loader, input of the model in evaluation mode."""

    record: VideoRecord
    dataset_name: str
    task: str  # "vis", "vos" or "image"
    label_set: str
    overlap: bool  # "vos": masks may overlap in the result
    topk: int  # the data set's own number of predictions


class TrackEntry(TypedDict):
    """One predicted (track, class) pair."""

    track_id: int
    category_id: int  # 0-based, in the label set
    score: float
    segmentations: list[Rle | None]  # T, at frame size; None: no mask


class VideoResult(TypedDict):
    """The model's output for a test item: ``tracks`` for the tasks "vis" and "image", ``objects`` for "vos"."""

    video_id: int | str
    tracks: NotRequired[list[TrackEntry]]  # best first
    objects: NotRequired[dict[int, list[Rle | None]]]  # by object id
