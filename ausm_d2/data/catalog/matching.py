# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Matches image files to frames and masks to frames; reports what matches nothing, or matches twice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePath

from ausm_d2.data.catalog.base import read_list
from ausm_d2.data.problems import mismatch, problem
from ausm_d2.names import PICTURES, numbering_shift, repeated, sorted_files


def read_video_list(path: Path) -> list[str]:
    """The videos of a list file (one name per line), without repetitions, which are reported."""
    names = []
    for name in read_list(path):
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            problem(f"{path}: {name!r} found, the name of a folder expected")
        else:
            names.append(name)
    once = list(dict.fromkeys(names))
    if len(once) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        more = len(names) - len(once)
        mismatch(str(path), f"{path}: video {twice!r} is listed twice ({more} lines too many); each counts once")
    return once


def picture_files(folder: Path, suffixes: Sequence[str] = PICTURES) -> list[str] | None:
    """File names of a video's frames, in natural order. Two files for one frame are reported, and None is returned."""
    files = sorted_files(folder, suffixes)
    twice = repeated(files)
    if twice is not None:
        problem(f"{folder}: two pictures for one frame, {twice[0]!r} and {twice[1]!r}")
        return None
    return files


def match_masks(folder: Path, masks: Sequence[str], frames: Sequence[str], *, all_frames: bool = True) -> None:
    """Report masks without a frame, and frames without a mask.

    Args:
        folder: of the masks, for messages.
        masks: names of the mask files, without suffix.
        frames: names of the frames.
        all_frames: report frames without a mask if most have one, unless there is one at every k-th frame.

    Raises:
        UserError: if no mask has the name of a frame, or masks match frames only with shifted numbers.
    """
    shift = numbering_shift(masks, frames)
    if shift is not None:
        problem(
            f"{folder}: masks are numbered from {masks[0]!r}, frames from {frames[0]!r}: the numbers are shifted by "
            f"{shift}, and every mask would be taken for that of another frame"
        )
    known = set(frames)
    unknown = [name for name in masks if name not in known]
    if len(unknown) == len(masks):
        if shift is None:
            problem(f"{folder}: no mask file has the name of a frame (such as {frames[0]}.png)")
        return
    if unknown and shift is None:
        mismatch(
            f"{folder.parent}: masks",
            f"{folder}: {len(unknown)} of {len(masks)} masks have the name of no frame (such as {unknown[0]!r})",
        )
    missing = _gaps(frames, set(masks)) if all_frames and shift is None else []
    if missing:
        mismatch(
            f"{folder.parent}: frames",
            f"{folder}: {len(missing)} of {len(frames)} frames have no mask (such as {missing[0]!r}); they count as "
            "frames without labels",
        )


def _gaps(frames: Sequence[str], masks: set[str]) -> list[str]:
    """The frames without a mask, if more than half of the frames have one and those are not every k-th frame."""
    labelled = [place for place, name in enumerate(frames) if name in masks]
    steps = {after - before for before, after in pairwise(labelled)}
    if 2 * len(labelled) <= len(frames) or (len(steps) == 1 and steps != {1}):
        return []
    return [name for name in frames if name not in masks]
