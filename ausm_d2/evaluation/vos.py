# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""J&F of prompted objects, measured by the package vos-benchmark.

An object is scored from the frame after its prompt on; DAVIS, MOSE and SA-V leave out the last frame too. J&F of a data
set is the mean over its objects, not over its videos.

Also a command that needs only two folders: ``python -m ausm_d2.evaluation.vos GT_DIR PRED_DIR --json OUT.json``.

Shape shorthand:
    H, W: frame size in pixels
    T: frames of a video
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from vos_benchmark.evaluator import Evaluator

from ausm_d2.errors import UserError, cli
from ausm_d2.evaluation.parallel import available_cores, in_parallel
from ausm_d2.io import atomic_write
from ausm_d2.masks.png import read_labels, read_mask
from ausm_d2.masks.rle import Rle, StoredMask, decode, to_rle
from ausm_d2.names import natural_order, numbering_shift, repeated, sorted_files, subfolders

if TYPE_CHECKING:
    from ausm_d2.data.video import VideoRecord


logger = logging.getLogger(__name__)


class ObjectScore(NamedTuple):
    """J and F of one object, percent."""

    j: float
    f: float


@dataclass
class VideoScore:
    """The scores of one video, by object id. Objects that are never seen after their prompt have none."""

    name: str
    objects: dict[int, ObjectScore]


class ObjectEvaluator:
    """vos-benchmark's ``Evaluator`` for one object.

    It gets the crop around the object's two masks, with the boundary tolerance of the whole frame: the same scores,
    many times faster for small objects.
    """

    _tolerance = 0.008  # of the frame's diagonal: vos-benchmark's and DAVIS's

    def __init__(self) -> None:
        self._evaluator = Evaluator()

    def feed(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Count one frame: two bool masks (H, W)."""
        radius = np.ceil(self._tolerance * np.linalg.norm(truth.shape))
        box = _box_around(predicted | truth)
        predicted, truth = predicted[box], truth[box]
        # Half a pixel less, so that the evaluator's ceil() returns this radius.
        self._evaluator.boundary = (radius - 0.5) / np.linalg.norm(truth.shape)
        self._evaluator.feed_frame(predicted.astype(np.uint8), truth.astype(np.uint8))

    def score(self) -> ObjectScore | None:
        """``None`` where the ground truth never showed the object."""
        j, f = self._evaluator.conclude()
        return ObjectScore(float(j[1]), float(f[1])) if j else None


def _box_around(mask: np.ndarray) -> tuple[slice, slice]:
    """The bounding box with a margin of one pixel: boundary pixels lie up and left of a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return slice(0, 1), slice(0, 1)
    return slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)


def score_record(
    record: VideoRecord, results: Mapping[int, Sequence[Rle | None]], *, skip_last_frame: bool = False
) -> VideoScore:
    """Score predicted masks, T per object id, against the masks of a record (``prompt_frames`` is needed).

    Raises:
        UserError: an object without a prompt frame or without results.
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
    return _conclude(record.name, evaluators)


def scored_frames(record: VideoRecord) -> list[int]:
    """The frames on which objects can be scored: those that carry labels and come after a prompt.

    None, where all masks that there are are prompts: then labels are not public.
    """
    prompts = record.prompt_frames or {}
    if not prompts or record.masks is None:
        return []
    labelled = record.labelled_frames
    frames = [frame for frame in labelled if frame > min(prompts.values())]
    if not set(prompts.values()).issuperset(labelled):
        return frames
    # In each of them some object is prompted. Where a server asks for others too, it has the labels; else they are
    # labels if they show objects that were prompted before.
    asked = record.extra.get("scored_frames", labelled)
    if not set(asked).issubset(labelled):
        return []
    shown = ((frame, object_id) for frame in frames for object_id in record.masks.read(frame))
    return frames if any(prompts.get(object_id, frame) < frame for frame, object_id in shown) else []


def _decode(mask: StoredMask | None, height: int, width: int) -> np.ndarray:
    """bool (height, width)."""
    if isinstance(mask, np.ndarray) and mask.shape == (height, width):
        return mask.astype(bool)  # from a picture: a round trip through RLE would cost more than scoring
    rle = to_rle(mask, height, width)
    return np.zeros((height, width), bool) if rle is None else decode(rle)


def _conclude(name: str, evaluators: Mapping[int, ObjectEvaluator]) -> VideoScore:
    scores = {object_id: evaluator.score() for object_id, evaluator in sorted(evaluators.items())}
    return VideoScore(name, {object_id: score for object_id, score in scores.items() if score is not None})


def summary(videos: Iterable[VideoScore]) -> dict[str, float | None]:
    """J&F, J and F in percent, means over all objects; ``None`` where no object was scored."""
    scores = [score for video in videos for score in video.objects.values()]
    if not scores:
        return {"J&F": None, "J": None, "F": None}
    j, f = (float(value) for value in np.mean(scores, axis=0))
    return {"J&F": (j + f) / 2, "J": j, "F": f}


def seen_and_unseen(videos: Iterable[VideoScore], is_seen: Mapping[tuple[str, int], bool]) -> dict[str, float]:
    """YouTube-VOS's scores in percent: means over the objects of categories seen and unseen in training, and G, the
    mean of the four. What has no objects is left out.

    Args:
        is_seen: by name of the video and object id.
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
    """Write the scores as CSV, a line for each object."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["video", "object", "J&F", "J", "F"])
        for video in videos:
            for object_id, score in video.objects.items():
                values = (score.j + score.f) / 2, score.j, score.f
                table.writerow([video.name, object_id, *(f"{value:.4f}" for value in values)])


class _Pair(NamedTuple):
    """One video of the two folders. ``frames`` are file names, sorted."""

    name: str
    truth: Path
    predicted: Path
    frames: list[str]
    all_truth: list[str]  # paths of all label pictures of the video; none where there are folders
    all_predicted: list[str]
    objects: list[str]  # folders of one object each, as in SA-V; else none

    def masks(self, frame: str, known: Collection[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(object id, predicted, true mask) of every object that is known or appears, masks bool (H, W).

        In a video of folders, only of objects that have annotations of this frame. Where an object appears, its true
        mask stands for the predicted one, which is not looked at.
        """
        for folder in self.objects:
            path = self.truth / folder / frame
            if path.exists():
                truth = predicted = read_mask(path)
                if int(folder) in known:
                    predicted = _like(truth, self.predicted / folder / frame, read_mask)
                yield int(folder), predicted, truth
        if not self.objects:
            ids = predicted_ids = read_labels(self.truth / frame, self.all_truth)
            if known:
                predicted_ids = _like(ids, self.predicted / frame, partial(read_labels, video=self.all_predicted))
            for object_id in {*known, *np.flatnonzero(np.bincount(ids.ravel())).tolist()} - {0}:
                yield object_id, predicted_ids == object_id, ids == object_id


def _like(truth: np.ndarray, path: Path, read: Callable[[Path], np.ndarray]) -> np.ndarray:
    """A predicted picture that must have the size of the true one, (H, W)."""
    predicted = read(path)
    if predicted.shape != truth.shape:
        found, expected = (f"{size[1]}x{size[0]}" for size in (predicted.shape, truth.shape))
        raise UserError(f"{path}: {found} pixels, expected {expected} as in the ground truth")
    return predicted


def _score_pair(pair: _Pair) -> VideoScore:
    evaluators: dict[int, ObjectEvaluator] = {}
    for frame in pair.frames:
        for object_id, predicted, truth in pair.masks(frame, evaluators.keys()):
            if object_id in evaluators:
                evaluators[object_id].feed(predicted, truth)
            elif truth.any():  # its prompt
                evaluators[object_id] = ObjectEvaluator()
    return _conclude(pair.name, evaluators)


def score_folders(
    truth: str | os.PathLike[str],
    predicted: str | os.PathLike[str],
    *,
    skip_last_frame: bool = False,
    workers: int | None = None,
) -> list[VideoScore]:
    """Score a folder of predicted masks: ``<video>/<frame>.png`` or, as in SA-V, ``<video>/<object>/<frame>.png``.

    An object's prompt is taken to be the first frame that shows it. Frames without a true mask are not looked at; the
    files are checked before anything is scored.

    Args:
        skip_last_frame: leave out each video's last frame, as DAVIS does.
        workers: processes; ``None``: as many as there are cores.

    Raises:
        UserError: files that are missing, are no masks, or differ in size.
    """
    pairs = _pairs(_tree(truth), _tree(predicted), skip_last_frame)
    return in_parallel(_score_pair, pairs, workers=available_cores() if workers is None else workers, label="J&F")


def _tree(path: str | os.PathLike[str]) -> Path:
    """The folder of video folders: data sets keep it in ``Annotations``, DAVIS in ``Annotations/480p``."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    for name in ("Annotations", "480p"):
        if (folder / name).is_dir():
            folder /= name
    return folder


def _pairs(truth: Path, predicted: Path, skip_last_frame: bool) -> list[_Pair]:
    videos = subfolders(truth)
    if not videos:
        raise UserError(f"{truth}: no masks: expected <video>/<frame>.png")
    pairs = []
    missing: list[Path] = []
    for video in videos:
        pair, of_pair = _pair(truth / video, predicted / video, skip_last_frame)
        pairs.append(pair)
        missing += of_pair
    if missing:
        raise UserError(f"{predicted}: {len(missing)} predicted masks are missing, the first of them {missing[0]}")
    others = [video for video in subfolders(predicted) if video not in videos]
    if others:
        logger.warning("%s: %d videos are not in the ground truth (such as %r)", predicted, len(others), others[0])
    return pairs


def _pair(truth: Path, predicted: Path, skip_last_frame: bool) -> tuple[_Pair, list[Path]]:
    """A video of both folders, and the predicted masks that are missing.

    Raises:
        UserError: masks that fit no frame, or two.
    """
    objects = subfolders(truth)
    if not all(name.isdecimal() for name in objects):
        raise UserError(f"{truth}: expected <frame>.png, or folders of one object each named by a number")
    if twice := repeated(objects):
        raise UserError(f"{truth}: two folders for one object, {twice[0]!r} and {twice[1]!r}")
    frames: set[str] = set()
    missing: list[Path] = []
    for parent in objects or [""]:
        of_parent = _masks(truth / parent)
        frames.update(of_parent)
        _require_same_numbers(predicted / parent, _masks(predicted / parent), of_parent)
    if not frames:
        raise UserError(f"{truth}: no masks: expected <frame>.png or <object>/<frame>.png")
    scored = sorted(frames, key=natural_order)
    scored = scored[:-1] if skip_last_frame else scored
    for parent in objects or [""]:
        needed = [frame for frame in scored[1:] if (truth / parent / frame).exists()]
        missing += [path for path in (predicted / parent / frame for frame in needed) if not path.exists()]
    all_truth, all_predicted = ([str(of / name) for name in _masks(of)] for of in (truth, predicted))
    return _Pair(truth.name, truth, predicted, scored, all_truth, all_predicted, objects), missing


def _masks(folder: Path) -> list[str]:
    """Names of the mask files of a folder, in natural order; none where there is no such folder."""
    files = sorted_files(folder, (".png",)) if folder.is_dir() else []
    if twice := repeated(files):
        raise UserError(f"{folder}: two masks for one frame, {twice[0]!r} and {twice[1]!r}")
    return files


def _require_same_numbers(folder: Path, predicted: Sequence[str], truth: Sequence[str]) -> None:
    shift = numbering_shift([Path(name).stem for name in predicted], [Path(name).stem for name in truth])
    if shift is not None:
        raise UserError(
            f"{folder}: masks are numbered from {predicted[0]!r}, those of the ground truth from {truth[0]!r}: the "
            f"numbers are shifted by {shift}"
        )


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
