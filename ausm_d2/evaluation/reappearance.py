# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""How many objects that were hidden come back on the track they had before.

Shape shorthand:
    T: frames of a video, those that carry labels
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ausm_d2.evaluation.tracks import track_overlaps
from ausm_d2.masks.rle import Rle

MIN_HIDDEN = 3  # frames without the object, between frames that show it
WINDOW = 3  # frames in which the track must be on the object: before it hides, and after it reappears
MIN_OVERLAP = 0.5  # intersection over union


@dataclass
class Reappearances:
    """Counts over the times that an object was hidden; they add up over videos."""

    hidden: int = 0  # an object was hidden for MIN_HIDDEN frames or more, and came back
    followed: int = 0  # of those: a track was on it before
    back: int = 0  # of those: the same track is on it again

    def __add__(self, other: Reappearances) -> Reappearances:
        return Reappearances(self.hidden + other.hidden, self.followed + other.followed, self.back + other.back)

    def results(self) -> dict[str, float]:
        """The counts, and ``back%`` of the hidden ones where there are any."""
        results: dict[str, float] = {"hidden": self.hidden, "followed": self.followed, "back": self.back}
        return {**results, "back%": 100 * self.back / self.hidden} if self.hidden else results


def count_reappearances(truth: Sequence[Rle | None], tracks: Sequence[Sequence[Rle | None]]) -> Reappearances:
    """Follow one object through a video.

    The track that was on it before it hid is the one that overlaps it most over the last (up to) 3 frames before, 0.5
    at least. It is on it again if their overlap is 0.5 in one of the first 3 frames after it has reappeared.

    Args:
        truth: the object's masks (T).
        tracks: predicted masks, T each; for a prompted object its own only.
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
