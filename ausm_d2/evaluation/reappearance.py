# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""How many objects that were hidden are found again by the track they had before.

Shape shorthand:
    T: labelled frames of a video
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ausm_d2.evaluation.tracks import track_overlaps
from ausm_d2.masks.rle import Rle

MIN_HIDDEN = 3  # minimum number of consecutive frames without the object
WINDOW = 3  # number of frames before hiding and after reappearing in which overlap is tested
MIN_OVERLAP = 0.5  # intersection over union


@dataclass
class Reappearances:
    """Counts of hidden intervals; they can be added over videos."""

    hidden: int = 0  # intervals of MIN_HIDDEN or more frames after which the object reappears
    followed: int = 0  # of those: a track covered the object before
    back: int = 0  # of those: the same track covers it again

    def __add__(self, other: Reappearances) -> Reappearances:
        return Reappearances(self.hidden + other.hidden, self.followed + other.followed, self.back + other.back)

    def results(self) -> dict[str, float]:
        """The counts, and ``back%``, relative to ``hidden``, if that is not 0."""
        results: dict[str, float] = {"hidden": self.hidden, "followed": self.followed, "back": self.back}
        return {**results, "back%": 100 * self.back / self.hidden} if self.hidden else results


def count_reappearances(truth: Sequence[Rle | None], tracks: Sequence[Sequence[Rle | None]]) -> Reappearances:
    """Count the reappearances of one object in a video.

    Its track before an interval is the one with the largest IoU over the last (up to) 3 frames before, at least 0.5. It
    is back if the IoU is at least 0.5 in one of the first 3 frames after the interval.

    Args:
        truth: the object's masks (T).
        tracks: predicted masks, T each; for a prompted object only its own track.
    """
    counts = Reappearances()
    for hides, returns in _gaps([mask is not None for mask in truth]):
        counts.hidden += 1
        before = [frame for frame in range(max(hides - WINDOW, 0), hides) if truth[frame] is not None]
        after = [frame for frame in range(returns, min(returns + WINDOW, len(truth))) if truth[frame] is not None]
        if not tracks:
            continue
        overlaps = track_overlaps(
            [[track[frame] for frame in before] for track in tracks], [[truth[frame] for frame in before]]
        )[:, 0]
        if overlaps.max() < MIN_OVERLAP:
            continue
        counts.followed += 1
        track = tracks[int(overlaps.argmax())]
        counts.back += any(track_overlaps([[track[frame]]], [[truth[frame]]])[0, 0] >= MIN_OVERLAP for frame in after)
    return counts


def _gaps(visible: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """(first hidden frame, first frame visible again) of every long enough gap between visible frames."""
    shown = np.flatnonzero(visible)
    for last, following in zip(shown[:-1].tolist(), shown[1:].tolist(), strict=True):
        if following - last > MIN_HIDDEN:
            yield last + 1, following
