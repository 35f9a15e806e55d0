# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""J&F of a folder of predicted masks against a folder of true masks.

Shape shorthand:
    H, W: frame size in pixels
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ausm_d2.cores import available_cores
from ausm_d2.errors import UserError
from ausm_d2.evaluation.object_scores import ObjectEvaluator, VideoScore, conclude
from ausm_d2.evaluation.parallel import in_parallel
from ausm_d2.masks.png import read_labels, read_mask
from ausm_d2.names import natural_order, numbering_shift, repeated, sorted_files, subfolders

logger = logging.getLogger(__name__)


class _Pair(NamedTuple):
    """One video in both folders. ``frames`` are file names, sorted."""

    name: str
    truth: Path
    predicted: Path
    frames: list[str]
    all_truth: list[str]  # paths of all label images of the video; empty with object folders
    all_predicted: list[str]
    objects: list[str]  # names of object folders, as in SA-V; else empty

    def masks(self, frame: str, known: Collection[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(object id, predicted mask, true mask) of every known or new object; masks are bool (H, W).

        With object folders, only objects with an annotation of this frame. For a new object the true mask is returned
        as the predicted one, which is not read.
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
    """Read a predicted image and check that it has the size (H, W) of the true one."""
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
    return conclude(pair.name, evaluators)


def score_folders(
    truth: str | os.PathLike[str],
    predicted: str | os.PathLike[str],
    *,
    skip_last_frame: bool = False,
    workers: int | None = None,
) -> list[VideoScore]:
    """Score a folder of predicted masks: ``<video>/<frame>.png`` or, as in SA-V, ``<video>/<object>/<frame>.png``.

    An object's prompt is the first frame that shows it. Frames without a true mask are ignored. All files are checked
    before anything is scored.

    Args:
        skip_last_frame: leave out each video's last frame, as in DAVIS.
        workers: number of processes; ``None``: one per core.

    Raises:
        UserError: if files are missing, are not masks, or differ in size.
    """
    pairs = _pairs(_tree(truth), _tree(predicted), skip_last_frame)
    return in_parallel(_score_pair, pairs, workers=available_cores() if workers is None else workers, label="J&F")


def _tree(path: str | os.PathLike[str]) -> Path:
    """The folder that contains the video folders: ``path``, ``Annotations`` or (DAVIS) ``Annotations/480p`` in it."""
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
    """A video in both folders, and the missing predicted masks.

    Raises:
        UserError: if masks match no frame, or two masks match one.
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
    """Names of the mask files of a folder, in natural order; empty if the folder does not exist."""
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
