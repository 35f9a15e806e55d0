# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""SA-V: training videos as mp4 at 24 fps with RLE masks at 6 fps; validation and test videos as frame folders."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from ausm_d2.data.catalog.annotations import drop_invalid, read_mask, read_table
from ausm_d2.data.catalog.base import OBJECT_CLASSES, OBJECT_LABEL_SET, find, find_all, register
from ausm_d2.data.catalog.matching import match_masks, picture_files, read_video_list
from ausm_d2.data.frames import ImageFiles, VideoFile
from ausm_d2.data.mask_sources import FirstFrames, ListedMasks, ObjectFolders
from ausm_d2.data.problems import LeftOut, mismatch, problem
from ausm_d2.data.video import DeferredRecord, Instance, VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.masks.rle import StoredMask
from ausm_d2.names import files_below, natural_order, repeated, sorted_files, subfolders
from ausm_d2.pictures import image_size

_STEP = 4  # frames of the video per labelled frame: 24 fps over 6 fps
_ROOTS = ("sav", "sa-v", "SA-V", "sa_v", ".")


def register_sav() -> None:
    """Register ``sav_train``, ``sav_val`` and ``sav_test``."""
    for split in ("train", "val", "test"):
        name = f"sav_{split}"
        read: Callable[..., list[VideoRecord]] = _load_train if split == "train" else partial(_load_frames, name)
        register(
            name,
            partial(_find_train if split == "train" else _find_frames, name, split),
            read,
            classes=OBJECT_CLASSES,
            evaluator_type="sav",
            task="vos",
            label_set=OBJECT_LABEL_SET,
            exhaustive=False,
            overlap=True,
        )
        MetadataCatalog.get(name).set(skip_last_frame=True)


# Training: <id>.mp4, <id>_manual.json, <id>_auto.json, in any folders below sav_train


def _find_train(name: str, split: str) -> list[Path]:
    return [find(name, "folder", [f"{root}/{folder}" for root in _ROOTS for folder in (name, split)])]


def _load_train(root: Path) -> list[VideoRecord]:
    left_out = LeftOut(str(root))
    files = sorted(files_below(root), key=natural_order)  # shards may be links to other disks
    unused = {path for path in files if path.name.endswith(("_manual.json", "_auto.json"))}
    records: dict[str, VideoRecord] = {}
    for path in (path for path in files if path.suffix.lower() == ".mp4"):
        both = (path.with_name(f"{path.stem}_{kind}.json") for kind in ("manual", "auto"))
        labels = [file for file in both if file in unused]
        unused.difference_update(labels)
        if path.stem in records:
            left_out.unmatched("videos of a name that another one has")
        elif labels:
            records[path.stem] = video_with_masklets(path, labels)
        else:
            left_out.unmatched("videos without _manual.json or _auto.json")
    for _ in unused:
        left_out.unmatched("files of masklets without a video")
    left_out.warn()
    return list(records.values())


def video_with_masklets(video: Path, labels: list[Path]) -> VideoRecord:
    """The record of a video file and its masklet files, which are read on first use."""
    frames = VideoFile(str(video))
    return DeferredRecord(partial(_read_masklets, labels), video_id=video.stem, name=video.stem, frames=frames)


def _read_masklets(paths: list[Path]) -> dict[str, Any]:
    """Fields of a record from masklet files: ``masklet[k][i]`` is object i in frame 4 k of the video.

    Objects are numbered across the files; those of ``_auto.json`` follow those of ``_manual.json``.
    """
    by_object: dict[int, list[StoredMask | None]] = {}
    height = width = num_frames = 0
    labelled: list[bool] = []
    for path in paths:
        data = read_table(path)
        height, width, num_frames = (
            _whole(path, data, f"video_{field}") for field in ("height", "width", "frame_count")
        )
        masklets = data.get("masklet")
        if not isinstance(masklets, list) or not masklets or not all(isinstance(frame, list) for frame in masklets):
            raise UserError(f"{path}: field 'masklet': a list with one list of masks for each labelled frame expected")
        if len(masklets) != -(-num_frames // _STEP):
            raise UserError(
                f"{path}: field 'masklet': {len(masklets)} frames found; {-(-num_frames // _STEP)} expected, every "
                f"{_STEP}th of video_frame_count = {num_frames}"
            )
        count, left_out = len(masklets[0]), LeftOut(str(path))
        if any(len(frame) != count for frame in masklets):
            raise UserError(f"{path}: field 'masklet': {count} masks in frame 0, but another number in another frame")
        for i in range(count):
            masks = [
                read_mask(f"{path}: masklet[{k}][{i}]", frame[i], height, width, left_out)
                for k, frame in enumerate(masklets)
            ]
            drop_invalid(f"{path}: masklet[*][{i}]", masks)
            spread: list[StoredMask | None] = [None] * num_frames
            spread[::_STEP] = masks
            by_object[len(by_object)] = spread
        left_out.warn()
        labelled = [t % _STEP == 0 for t in range(num_frames)]
    return {
        "height": height,
        "width": width,
        "labelled": labelled,
        "masks": ListedMasks(by_object),
        "instances": [Instance(object_id, 0) for object_id in by_object],
    }


def _whole(path: Path, data: dict[str, Any], field: str) -> int:
    value = data.get(field)
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value != int(value) or value <= 0:
        raise UserError(f"{path}: field {field!r}: {value!r} found, a whole number from 1 on expected")
    return int(value)


# Validation and test: JPEGImages_24fps/<video>/<frame>.jpg, Annotations_6fps/<video>/<object>/<frame>.png


def _find_frames(name: str, split: str) -> list[Path]:
    root = find(name, "folder", [f"{root}/{folder}" for root in _ROOTS for folder in (name, split)]).absolute()
    return find_all(name, {"image folder": [root / "JPEGImages_24fps"], "mask folder": [root / "Annotations_6fps"]})


def _load_frames(name: str, images: Path, masks: Path) -> list[VideoRecord]:
    video_list = images.with_name(f"{name}.txt")
    left_out = LeftOut(str(images))
    records: list[VideoRecord] = []
    for video in read_video_list(video_list) if video_list.exists() else subfolders(masks):
        if not (images / video).is_dir():
            problem(f"{images / video}: the frames of video {video!r} are missing")
            continue
        files = picture_files(images / video)
        if files is None:
            continue
        if not files:
            left_out.unmatched("videos of 0 frames")
            continue
        frames = ImageFiles(str(images / video), tuple(files))
        load = partial(_read_objects, frames, masks / video)
        records.append(DeferredRecord(load, video_id=video, name=video, frames=frames))
    left_out.warn()
    return records


def _read_objects(frames: ImageFiles, folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder}: the masks of this video are missing")
    size = image_size(frames.path(0))
    names_of_objects = [name for name in subfolders(folder) if name.isdecimal()]
    others = sorted({*subfolders(folder)} - {*names_of_objects})
    if others:
        mismatch(f"{folder.parent}: objects", f"{folder}: folder {others[0]!r} is no object (000, 001, ... expected)")
    twice = repeated(names_of_objects)
    if twice is not None:
        raise UserError(f"{folder}: two folders for one object, {twice[0]!r} and {twice[1]!r}")
    objects = {int(name): name for name in names_of_objects}
    if not objects:
        raise UserError(f"{folder}: no folder of an object (000, 001, ...) found")
    pictures = {
        object_id: frozenset(Path(file).stem for file in sorted_files(folder / name, (".png",)))
        for object_id, name in objects.items()
    }
    names = tuple(frames.names)
    match_masks(folder, sorted(set().union(*pictures.values()), key=natural_order), names)
    labelled = [any(name in of_one for of_one in pictures.values()) for name in names]
    masks = ObjectFolders(str(folder), objects, names, pictures, size)
    return {
        "height": size[0],
        "width": size[1],
        "labelled": labelled,
        "masks": masks,
        "instances": [Instance(object_id, 0) for object_id in objects],
        "prompt_frames": FirstFrames(masks, [t for t, has_labels in enumerate(labelled) if has_labels], objects),
    }
