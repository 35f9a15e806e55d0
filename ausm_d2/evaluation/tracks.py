# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Tracks of objects through a video, and their overlaps.

Shape shorthand:
    T: frames of a video
    D, G: tracks of two sets, such as predicted and true ones
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ausm_d2.data.video import VideoRecord
from ausm_d2.masks.rle import Measures, Rle, intersections, measure, to_rle

VideoId = int | str

_COMB = 8  # frames, spread over the video, per round; after each round pairs with too little overlap are dropped


@dataclass
class Track:
    """One object through one video, annotated or predicted."""

    video_id: VideoId
    category_id: int
    masks: Sequence[Rle | None]  # (T,)
    score: float = 1.0
    is_crowd: bool = False
    # Pixels, mean over the frames where it is visible; determines its size range. ``None``: computed from the masks.
    area: float | None = None
    measures: Measures = None  # type: ignore[assignment]  # (T,); computed from the masks if not given

    def __post_init__(self) -> None:
        if self.measures is None:
            self.measures = measure(self.masks)
        if self.area is None:
            self.area = mean_area(self.measures.areas.tolist())


def mean_area(frame_areas: Iterable[float | None]) -> float:
    """Mean over frames with a non-zero area, as in the official evaluator; 0 if there are none."""
    visible = [area for area in frame_areas if area]
    return float(np.mean(visible)) if visible else 0.0


def track_overlaps(rows: Sequence[Sequence[Rle | None]], columns: Sequence[Sequence[Rle | None]]) -> np.ndarray:
    """Intersection over union of tracks, summed over frames: float64 (D, G) for D and G tracks of T frames.

    0 if both are empty in all frames. Pixel counts are integers, so only the division rounds.
    """
    return measured_overlaps(rows, [measure(masks) for masks in rows], columns, [measure(masks) for masks in columns])


def measured_overlaps(
    rows: Sequence[Sequence[Rle | None]],
    row_measures: Sequence[Measures],
    columns: Sequence[Sequence[Rle | None]],
    column_measures: Sequence[Measures],
    *,
    wanted: np.ndarray | None = None,
    least: float = 0.0,
) -> np.ndarray:
    """``track_overlaps`` for measured masks.

    Args:
        wanted: bool (D, G): pairs that need exact overlaps (default: all); the others get upper bounds.
        least: overlaps below this need not be exact: they get upper bounds that are below it too.
    """
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)))
    areas, starts, stops, _ = (np.stack(field)[:, None] for field in zip(*row_measures, strict=True))  # (D, 1, T)
    other_areas, other_starts, other_stops, _ = (np.stack(field) for field in zip(*column_measures, strict=True))
    # Upper bound of the intersection of two masks, (D, G, T) ...
    most = np.minimum(stops, other_stops) - np.maximum(starts, other_starts)
    most = np.minimum(np.minimum(areas, other_areas), np.maximum(most, 0))
    # ... and of two tracks. Each round replaces the bound by exact counts for some frames.
    shared = most.sum(axis=2)
    union = (areas + other_areas - most).sum(axis=2)
    frames = np.flatnonzero(most.any(axis=(0, 1)))
    num_combs = -(-len(frames) // _COMB)
    for first in range(num_combs):
        comb = frames[first::num_combs]
        undecided = shared >= np.maximum(least * union, 1)
        if wanted is not None:
            undecided &= wanted
        here, there = np.flatnonzero(undecided.any(axis=1)), np.flatnonzero(undecided.any(axis=0))
        if not here.size:
            break
        found = [
            intersections(
                [rows[row][frame] for row in here.tolist()],
                areas[here, 0, frame],
                [columns[column][frame] for column in there.tolist()],
            )
            for frame in comb.tolist()
        ]
        pairs = np.ix_(here, there)
        apart = most[pairs][:, :, comb].sum(axis=2) - np.sum(found, axis=0)
        shared[pairs] -= apart
        union[pairs] += apart
    return shared / np.maximum(union, 1)


def true_tracks(record: VideoRecord) -> list[Track]:
    """The annotated tracks of a record, with contiguous category ids.

    Areas come from ``record.extra["areas"]`` (per frame, by instance id) if present: the official evaluator assigns
    sizes by the areas of the annotation file, not by the masks.
    """
    masks = true_masks(record)
    own_areas = record.extra.get("areas", {})
    tracks = []
    for instance in record.instances:
        own = own_areas.get(instance.instance_id)
        tracks.append(
            Track(
                record.video_id,
                instance.category_id,
                masks[instance.instance_id],
                is_crowd=instance.is_crowd,
                area=None if own is None else mean_area(own),
            )
        )
    return tracks


def true_masks(record: VideoRecord) -> dict[int, list[Rle | None]]:
    """The annotated masks of a record, T per instance id, ``None`` in frames where it is not visible."""
    assert record.masks is not None
    masks: dict[int, list[Rle | None]] = {instance.instance_id: [None] * record.length for instance in record.instances}
    for frame in range(record.length):
        for instance_id, mask in record.masks.read(frame).items():
            frames = masks.setdefault(instance_id, [None] * record.length)
            frames[frame] = to_rle(mask, record.height, record.width)
    return masks
