# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Average precision of tracks, equal to the official evaluator of YouTube-VIS and OVIS.

Also a command: ``python -m ausm_d2.evaluation.ytvis GT.json RESULTS.json --json OUT.json``.

Shape shorthand:
    D, G: predicted and ground-truth tracks of one category in one video
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ausm_d2.errors import cli
from ausm_d2.evaluation.average_precision import (
    METRICS,
    MOST_DETECTIONS,
    Detections,
    distinct_names,
    match,
    summarise,
)
from ausm_d2.evaluation.tracks import Track, VideoId, measured_overlaps
from ausm_d2.evaluation.ytvis_files import GroundTruth, Video, read_results, read_truth
from ausm_d2.io import atomic_write

__all__ = [
    "METRICS",
    "GroundTruth",
    "ImageEval",
    "Track",
    "TrackEval",
    "Video",
    "VideoId",
    "read_results",
    "read_truth",
    "score",
    "score_files",
    "table",
]

logger = logging.getLogger(__name__)


class TrackEval:
    """AP of tracks. Videos are added one by one; their masks are not stored.

    As in the official evaluator, the overlap of two tracks is the sum of intersections over frames divided by the sum
    of unions, also for crowds, and areas are means over frames.
    """

    size_limits: tuple[float, float] = (128**2, 256**2)  # pixels: small below the first, large above the second

    def __init__(self, category_ids: Iterable[int]) -> None:
        self.category_ids = sorted(category_ids)
        self._detections: dict[int, dict[VideoId, Detections]] = {category: {} for category in self.category_ids}

    def add(self, video_id: VideoId, truth: Sequence[Track], results: Sequence[Track]) -> None:
        """Add a video, once. Tracks of unknown categories are ignored."""
        annotated, predicted = _by_category(truth), _by_category(results)
        for category, tracks in predicted.items():
            # By descending score, at most MOST_DETECTIONS
            predicted[category] = sorted(tracks, key=lambda track: -track.score)[:MOST_DETECTIONS]
        both = [category for category in self.category_ids if category in annotated and category in predicted]
        rows = [track for category in both for track in predicted[category]]
        columns = [track for category in both for track in annotated[category]]
        overlaps = self.overlaps(rows, columns)
        row = column = 0
        for category, of_category in self._detections.items():
            found, true = predicted.get(category, []), annotated.get(category, [])
            if not found and not true:
                continue
            part = np.zeros((len(found), len(true)))
            if part.size:
                part = overlaps[row : row + len(found), column : column + len(true)]
                row, column = row + len(found), column + len(true)
            of_category[video_id] = match(
                np.array([track.score for track in found], float),
                part,
                np.array([track.area for track in found], float),
                np.array([track.area for track in true], float),
                np.array([track.is_crowd for track in true], bool),
                self.size_limits,
            )

    def overlaps(self, predicted: Sequence[Track], annotated: Sequence[Track]) -> np.ndarray:
        """Intersection over union of tracks: (D, G), 0 to 1.

        Values below 0.5, the smallest threshold, and between categories are upper bounds only.
        """
        categories = np.array([track.category_id for track in annotated])
        return measured_overlaps(
            [track.masks for track in predicted],
            [track.measures for track in predicted],
            [track.masks for track in annotated],
            [track.measures for track in annotated],
            wanted=np.array([track.category_id for track in predicted])[:, None] == categories,
            least=0.5,
        )

    def scores(self, class_names: Sequence[str]) -> dict[str, Any]:
        """AP, AP50, AP75, APs, APm, APl, AR1, AR10 and ``per_category`` (AP by name), in percent.

        ``None`` without ground truth objects of that size or category.

        Args:
            class_names: in the order of the category ids.
        """
        return summarise(self._groups(), class_names)

    def scores_by_class(self, class_names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """``METRICS`` of each class by itself, by its name."""
        by_class = zip(class_names, self._groups(), strict=True)
        return {name: {k: v for k, v in summarise([of], [name]).items() if k in METRICS} for name, of in by_class}

    def _groups(self) -> list[list[Detections]]:
        """By category; ties between videos are broken by video id."""
        return [[group[video] for video in sorted(group, key=_order)] for group in self._detections.values()]


class ImageEval(TrackEval):
    """COCO's AP, for images as one-frame videos.

    As in COCO, overlap with a crowd is relative to the detection's area, and results without a mask are ignored.
    """

    size_limits = (32**2, 96**2)

    def add(self, video_id: VideoId, truth: Sequence[Track], results: Sequence[Track]) -> None:
        super().add(video_id, truth, [track for track in results if track.masks[0] is not None])

    def overlaps(self, predicted: Sequence[Track], annotated: Sequence[Track]) -> np.ndarray:
        if not predicted or not annotated:
            return np.zeros((len(predicted), len(annotated)))
        crowds = [int(track.is_crowd) for track in annotated]
        return coco_mask.iou([track.masks[0] for track in predicted], [track.masks[0] for track in annotated], crowds)


def _by_category(tracks: Iterable[Track]) -> dict[int, list[Track]]:
    grouped: dict[int, list[Track]] = defaultdict(list)
    for track in tracks:
        grouped[track.category_id].append(track)
    return grouped


def _order(video_id: VideoId) -> tuple[bool, VideoId]:
    """Numbers before text."""
    return isinstance(video_id, str), video_id


def score(truth: GroundTruth, results: Sequence[Track]) -> dict[str, Any]:
    """``TrackEval.scores`` for all videos of the ground truth; all ``None`` without labels."""
    if not truth.tracks:
        return {**dict.fromkeys(METRICS), "per_category": dict.fromkeys(distinct_names(truth.categories))}
    annotated, predicted = _by_video(truth.tracks), _by_video(results)
    evaluation = TrackEval(truth.categories)
    for video_id in truth.videos:
        evaluation.add(video_id, annotated[video_id], predicted[video_id])
    return evaluation.scores(distinct_names(dict(sorted(truth.categories.items()))))


def _by_video(tracks: Iterable[Track]) -> dict[VideoId, list[Track]]:
    grouped: dict[VideoId, list[Track]] = defaultdict(list)
    for track in tracks:
        grouped[track.video_id].append(track)
    return grouped


def score_files(truth_path: str | os.PathLike[str], results_path: str | os.PathLike[str]) -> dict[str, Any]:
    """``score`` of two files.

    Raises:
        UserError: naming file, entry and field, if they are invalid.
    """
    collecting = gc.isenabled()
    gc.disable()  # it would repeatedly traverse millions of live objects
    try:
        truth = read_truth(truth_path)
        if truth.tracks is None:
            logger.warning("%s has no annotations, so there is nothing to score", truth_path)
        return score(truth, read_results(results_path, truth))
    finally:
        if collecting:
            gc.enable()


def table(scores: dict[str, Any]) -> str:
    """The scores as two lines of text, '-' without ground truth."""
    cells = ["-" if scores[name] is None else f"{scores[name]:.2f}" for name in METRICS]
    width = max(map(len, (*METRICS, *cells)))
    return "\n".join("  ".join(text.rjust(width) for text in row) for row in (METRICS, cells))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m ausm_d2.evaluation.ytvis", description="AP of a YouTube-VIS or OVIS result file, in percent."
    )
    parser.add_argument("truth", metavar="GT.json", help="annotations in the YouTube-VIS form")
    parser.add_argument("results", metavar="RESULTS.json", help="a list of video_id, category_id, score, segmentations")
    parser.add_argument("--json", metavar="OUT.json", help="write the scores, AP per category too, to this file")
    options = parser.parse_args(arguments)
    scores = score_files(options.truth, options.results)
    if options.json:
        with atomic_write(options.json) as path:
            path.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    print(table(scores))


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    cli(main)
