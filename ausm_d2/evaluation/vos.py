# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""J&F of prompted objects, computed by the package vos-benchmark.

An object is scored from the frame after its prompt; DAVIS, MOSE and SA-V also leave out the last frame. J&F of a data
set is the mean over its objects, not over its videos.

Also a command: ``python -m ausm_d2.evaluation.vos GT_DIR PRED_DIR --json OUT.json``.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of a video
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ausm_d2.data.video import VideoRecord
from ausm_d2.errors import UserError, cli
from ausm_d2.evaluation.object_scores import ObjectEvaluator as ObjectEvaluator
from ausm_d2.evaluation.object_scores import ObjectScore as ObjectScore
from ausm_d2.evaluation.object_scores import VideoScore as VideoScore
from ausm_d2.evaluation.object_scores import conclude
from ausm_d2.evaluation.vos_folders import score_folders as score_folders
from ausm_d2.io import atomic_write
from ausm_d2.masks.rle import Rle, StoredMask, decode, to_rle

AREAS = (0.5, 2.0, 8.0, 100.0)  # of an object, percent of the frame: the upper edges of classes


def score_record(
    record: VideoRecord, results: Mapping[int, Sequence[Rle | None]], *, skip_last_frame: bool = False
) -> VideoScore:
    """Score predicted masks, T per object id, against the masks of a record (``prompt_frames`` is needed).

    Raises:
        UserError: if an object has no result.
    """
    assert record.masks is not None
    frames = scored_frames(record)
    if skip_last_frame and frames[-1:] == record.labelled_frames[-1:]:
        frames = frames[:-1]
    prompts = record.prompt_frames or {}
    evaluators: dict[int, ObjectEvaluator] = {}
    for object_id in prompts:
        if object_id not in results:
            raise UserError(f"video {record.name}: no result for object {object_id}")
        evaluators[object_id] = ObjectEvaluator()
    for frame in frames:
        scored = [object_id for object_id, prompt in prompts.items() if frame > prompt]
        masks = record.masks.read(frame) if scored else {}
        for object_id in scored:
            predicted, truth = (
                _decode(mask, record.height, record.width) for mask in (results[object_id][frame], masks.get(object_id))
            )
            evaluators[object_id].feed(predicted, truth)
    return conclude(record.name, evaluators)


def overlaps_by_area(record: VideoRecord, results: Mapping[int, Sequence[Rle | None]]) -> dict[float, list[float]]:
    """IoU of each object with its truth, in all scored frames that show it, by the upper edge of its area: AREAS."""
    found: dict[float, list[float]] = {edge: [] for edge in AREAS}
    prompts = record.prompt_frames or {}
    for frame in scored_frames(record):
        assert record.masks is not None
        masks = record.masks.read(frame)
        for object_id, prompt in prompts.items():
            truth = _decode(masks.get(object_id), record.height, record.width)
            if frame > prompt and truth.any():
                predicted = _decode(results[object_id][frame], record.height, record.width)
                edge = area_class(truth)
                found[edge].append(np.count_nonzero(predicted & truth) / np.count_nonzero(predicted | truth))
    return found


def area_class(mask: np.ndarray) -> float:
    """The first of AREAS that is not below the area of a mask."""
    area = 100 * np.count_nonzero(mask) / mask.size
    return next(edge for edge in AREAS if area <= edge)


def scored_frames(record: VideoRecord) -> list[int]:
    """The frames on which objects can be scored: labelled frames after a prompt.

    Empty if all masks are prompts: then the labels are not public.
    """
    prompts = record.prompt_frames or {}
    if not prompts or record.masks is None:
        return []
    labelled = record.labelled_frames
    frames = [frame for frame in labelled if frame > min(prompts.values())]
    if not set(prompts.values()).issuperset(labelled):
        return frames
    # An object is prompted in each labelled frame. If the server scores further frames, it has the labels. Otherwise
    # these masks are labels if they include objects prompted earlier.
    asked = record.extra.get("scored_frames", labelled)
    if not set(asked).issubset(labelled):
        return []
    shown = ((frame, object_id) for frame in frames for object_id in record.masks.read(frame))
    return frames if any(prompts.get(object_id, frame) < frame for frame, object_id in shown) else []


def _decode(mask: StoredMask | None, height: int, width: int) -> np.ndarray:
    """bool (height, width)."""
    if isinstance(mask, np.ndarray) and mask.shape == (height, width):
        return mask.astype(bool)  # from an image file: converting to RLE and back would cost more than scoring
    rle = to_rle(mask, height, width)
    return np.zeros((height, width), bool) if rle is None else decode(rle)


def summary(videos: Iterable[VideoScore]) -> dict[str, float | None]:
    """J&F, J and F in percent, means over all objects; ``None`` if no object was scored."""
    scores = [score for video in videos for score in video.objects.values()]
    if not scores:
        return {"J&F": None, "J": None, "F": None}
    j, f = (float(value) for value in np.mean(scores, axis=0))
    return {"J&F": (j + f) / 2, "J": j, "F": f}


def seen_and_unseen(videos: Iterable[VideoScore], is_seen: Mapping[tuple[str, int], bool]) -> dict[str, float]:
    """YouTube-VOS's scores in percent: means over the objects of categories seen and unseen in training, and G, the
    mean of the four. Groups without objects are omitted.

    Args:
        is_seen: by video name and object id.
    """
    groups: dict[str, list[ObjectScore]] = {"seen": [], "unseen": []}
    for video in videos:
        for object_id, score in video.objects.items():
            groups["seen" if is_seen[video.name, object_id] else "unseen"].append(score)
    scores: dict[str, float] = {}
    for name, of_group in groups.items():
        if of_group:
            scores[f"J_{name}"], scores[f"F_{name}"] = (float(value) for value in np.mean(of_group, axis=0))
    return {"G": float(np.mean(list(scores.values()))), **scores} if len(scores) == 4 else scores


def write_table(path: str | os.PathLike[str], videos: Iterable[VideoScore]) -> None:
    """Write the scores as CSV, one line per object."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["video", "object", "J&F", "J", "F"])
        for video in videos:
            for object_id, score in video.objects.items():
                values = (score.j + score.f) / 2, score.j, score.f
                table.writerow([video.name, object_id, *(f"{value:.4f}" for value in values)])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m ausm_d2.evaluation.vos",
        description="J&F of folders of masks, in percent. Each object is scored from the frame after its first one on.",
    )
    parser.add_argument("truth", metavar="GT_DIR", help="<video>/<frame>.png, or <video>/<object>/<frame>.png (SA-V)")
    parser.add_argument("predicted", metavar="PRED_DIR", help="the same, predicted")
    parser.add_argument("--json", metavar="OUT.json", help="write the scores, per video and object too, to this file")
    parser.add_argument(
        "--skip-last-frame", action="store_true", help="leave out each video's last frame (DAVIS, MOSE, SA-V)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one for each core)")
    options = parser.parse_args(arguments)
    videos = score_folders(
        options.truth, options.predicted, skip_last_frame=options.skip_last_frame, workers=options.workers
    )
    scores = summary(videos)
    if options.json:
        with atomic_write(options.json) as path:
            path.write_text(json.dumps({**scores, "per_video": _per_video(videos)}, indent=2) + "\n", encoding="utf-8")
    objects = sum(len(video.objects) for video in videos)
    print(f"{len(videos)} videos, {objects} objects, each from the frame after its first one on", end="")
    print(", without the last frame" if options.skip_last_frame else "")
    print("  ".join(f"{name} {'-' if value is None else format(value, '.2f')}" for name, value in scores.items()))


def _per_video(videos: Sequence[VideoScore]) -> dict[str, Any]:
    return {
        video.name: {
            **summary([video]),
            "objects": {str(object_id): {"J": score.j, "F": score.f} for object_id, score in video.objects.items()},
        }
        for video in videos
    }


if __name__ == "__main__":
    cli(main)
