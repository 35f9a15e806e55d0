# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Prompted video segmentation: DAVIS 2017, YouTube-VOS 2018 and 2019, MOSE, and any data in the same folder layout.

A tree has ``<images>/<video>/<frame>.jpg`` and ``<masks>/<video>/<frame>.png``, pixel = object id. Frames without a
mask file carry no labels. An object's prompt is its mask in the first frame that shows it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from ausm_d2.data.catalog.base import OBJECT_CLASSES, OBJECT_LABEL_SET, find, find_all, register
from ausm_d2.data.catalog.matching import match_masks, picture_files, read_video_list
from ausm_d2.data.frames import ImageFiles
from ausm_d2.data.mask_sources import FirstFrames, LabelPictures
from ausm_d2.data.problems import LeftOut, mismatch, problem
from ausm_d2.data.video import DeferredRecord, Instance, VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.io import read_json
from ausm_d2.names import natural_order, subfolders
from ausm_d2.pictures import image_size

_DAVIS, _MOSE = "https://davischallenge.org", "https://github.com/henghuiding/MOSE-api"
_YOUTUBE_VOS = "https://youtube-vos.org"


def register_vos() -> None:
    """Register ``davis_2017_{train,val}``, ``youtubevos_{2018,2019}_{train,val}`` and ``mose_{train,val}``."""
    for split in ("train", "val"):
        name = f"davis_2017_{split}"
        _register(name, partial(_find_davis, name, split), load_folder_tree, skip_last_frame=True, homepage=_DAVIS)
    for split, folder in (("train", "train"), ("val", "valid")):
        name = f"mose_{split}"
        _register(name, partial(_find_mose, name, folder), load_folder_tree, skip_last_frame=True, homepage=_MOSE)
        for year in ("2018", "2019"):
            name = f"youtubevos_{year}_{split}"
            locate, read = partial(_find_youtube_vos, name, year, folder), partial(_load_youtube_vos, name)
            _register(name, locate, read, evaluator_type="ytvos", homepage=_YOUTUBE_VOS)


def _register(name: str, locate: Any, read: Any, evaluator_type: str = "vos", **evaluation: Any) -> None:
    """``evaluation``: metadata for the evaluator: ``skip_last_frame``, ``homepage``."""
    register(
        name,
        locate,
        read,
        classes=OBJECT_CLASSES,
        evaluator_type=evaluator_type,
        task="vos",
        label_set=OBJECT_LABEL_SET,
        exhaustive=False,
    )
    MetadataCatalog.get(name).set(**evaluation)


def register_davis_style(name: str, image_root: str, mask_root: str, video_list: str = "") -> None:
    """Register a folder tree of your own.

    Args:
        name: e.g. "cells_val".
        image_root, mask_root: the folders that hold one folder per video; absolute, or relative to the data root.
        video_list: a text file with one video name per line; default: all folders of ``mask_root``.
    """
    wanted = {"image folder": [image_root], "mask folder": [mask_root]}
    if video_list:
        wanted["video list"] = [video_list]
    _register(name, partial(find_all, name, wanted), load_folder_tree)


def _find_davis(name: str, split: str) -> list[Path]:
    roots = ["DAVIS", "davis", "DAVIS/2017/trainval"]
    video_list = find(name, "folder", [f"{root}/ImageSets/2017/{split}.txt" for root in roots]).absolute()
    images, masks = (video_list.parents[2] / kind / "480p" for kind in ("JPEGImages", "Annotations"))
    return [*find_all(name, {"image folder": [images], "mask folder": [masks]}), video_list]


def _find_mose(name: str, folder: str) -> list[Path]:
    root = find(name, "folder", [f"{root}/{folder}" for root in ("mose", "MOSE", "mose_release")]).absolute()
    return find_all(name, {"image folder": [root / "JPEGImages"], "mask folder": [root / "Annotations"]})


def _find_youtube_vos(name: str, year: str, folder: str) -> list[Path]:
    roots = (f"ytbvos{year}", f"ytbvos/{year}", "ytbvos", f"youtube_vos_{year}", f"YouTubeVOS_{year}")
    meta = find(name, "meta.json", [f"{root}/{folder}/meta.json" for root in roots]).absolute()
    images, masks = meta.with_name("JPEGImages"), meta.with_name("Annotations")
    return [*find_all(name, {"image folder": [images], "mask folder": [masks]}), meta]


def _load_youtube_vos(name: str, images: Path, masks: Path, meta_file: Path) -> list[VideoRecord]:
    meta = _read_meta(meta_file)
    training = meta_file.parent.with_name("train") / "meta.json"
    if training.exists():
        seen, left_out = set(), LeftOut(str(training))
        for entry in (entry for video in _read_meta(training).values() for entry in video.values()):
            if isinstance(entry, dict) and isinstance(entry.get("category"), str):
                seen.add(entry["category"])
            else:
                left_out.add("objects without a 'category' (they say what is seen in training)")
        left_out.warn()
        if seen:
            MetadataCatalog.get(name).set(seen_categories=seen)

    def objects(video: str, frame_names: list[str]) -> dict[str, Any]:
        return _read_objects(f"{meta_file}: videos.{video}.objects", meta[video], frame_names)

    return load_records(images, masks, sorted(meta, key=natural_order), objects)


# Reading


def load_folder_tree(image_root: Path, mask_root: Path, video_list: Path | None = None) -> list[VideoRecord]:
    """``load_records`` of the videos in a list file (one name per line); without it, of all mask folders."""
    if video_list:
        return load_records(image_root, mask_root, read_video_list(video_list))
    videos = subfolders(mask_root)
    without = sorted(set(subfolders(image_root)) - set(videos), key=natural_order)
    if without:
        mismatch(
            f"{image_root} without masks",
            f"{image_root}: {len(without)} videos have no folder in {mask_root} (such as {without[0]!r}); left out",
        )
    return load_records(image_root, mask_root, videos)


def load_records(
    image_root: Path,
    mask_root: Path,
    videos: Sequence[str],
    describe: Callable[[str, list[str]], dict[str, Any]] | None = None,
) -> list[VideoRecord]:
    """Records of the ``videos`` of a folder tree. Masks and sizes are read on first use.

    Args:
        image_root, mask_root: the folders that hold one folder per video.
        videos: names of the videos.
        describe: returns more fields of a record, given its name and frame names; default: objects are those of the
            masks, prompted in the first frame that shows them.

    Raises:
        UserError: if a video is missing; the message names its folder.
    """
    left_out = LeftOut(str(image_root))
    records: list[VideoRecord] = []
    for video in videos:
        record = _folder_record(video, image_root / video, mask_root / video, describe, left_out)
        if record is not None:
            records.append(record)
    left_out.warn()
    return records


def load_video(frames: Path, masks: Path) -> VideoRecord:
    """The record of one video, whose frames and masks are in these folders.

    Raises:
        UserError: there are no frames in the folder.
    """
    left_out = LeftOut(str(frames))
    record = _folder_record(frames.name, frames, masks, None, left_out)
    if record is None:
        raise UserError(f"{frames}: no pictures found, the frames of a video expected")
    return record


def _folder_record(
    video: str,
    folder: Path,
    mask_folder: Path,
    describe: Callable[[str, list[str]], dict[str, Any]] | None,
    left_out: LeftOut,
) -> VideoRecord | None:
    if not folder.is_dir():
        problem(f"{folder}: the frames of video {video!r} are missing")
        return None
    files = picture_files(folder)
    if files is None:
        return None
    if not files:
        left_out.unmatched("videos of 0 frames")
        return None
    frames = ImageFiles(str(folder), tuple(files))
    known = describe(video, frames.names) if describe else {}
    load = partial(_read_rest, frames, mask_folder, all_frames=describe is None)
    return DeferredRecord(load, video_id=video, name=video, frames=frames, **known)


def _read_rest(frames: ImageFiles, mask_folder: Path, all_frames: bool) -> dict[str, Any]:
    height, width = image_size(frames.path(0))
    if not mask_folder.is_dir():
        raise UserError(f"{mask_folder}: the masks of this video are missing")
    stored = {os.path.splitext(file)[0]: file for file in picture_files(mask_folder, (".png",)) or []}
    if not stored:
        raise UserError(f"{mask_folder}: no masks; <frame>.png expected, such as {frames.names[0]}.png")
    match_masks(mask_folder, list(stored), frames.names, all_frames=all_frames)
    files = tuple(stored.get(name) for name in frames.names)
    masks = LabelPictures(str(mask_folder), files, (height, width))
    labelled = [file is not None for file in files]
    prompts = FirstFrames(masks, [t for t, has_labels in enumerate(labelled) if has_labels])
    return {"height": height, "width": width, "masks": masks, "labelled": labelled, "prompt_frames": prompts}


# YouTube-VOS


def _read_meta(path: Path) -> dict[str, dict[str, Any]]:
    """Objects of each video: {video: {object id (text): {"category": ..., "frames": [...]}}}."""
    data = read_json(path)
    videos = data.get("videos") if isinstance(data, dict) else None
    if not isinstance(videos, dict):
        raise UserError(f"{path}: field 'videos': an object with one entry per video expected")
    objects = {}
    for video, entry in videos.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("objects"), dict):
            problem(f"{path}: videos.{video}.objects: an object with one entry per object expected")
        else:
            objects[video] = entry["objects"]
    return objects


def _read_objects(where: str, objects: dict[str, Any], frame_names: list[str]) -> dict[str, Any]:
    """Fields of a record from ``meta.json``: an object is prompted in the first frame that is listed for it.

    ``extra["scored_frames"]``: the frames to submit; ``extra["object_categories"]``: category names by object id.
    """
    place = {name: t for t, name in enumerate(frame_names)}
    prompts: dict[int, int] = {}
    scored: set[int] = set()
    categories: dict[int, str] = {}
    for key, entry in objects.items():
        names = entry.get("frames") if isinstance(entry, dict) else None
        if not key.isdecimal() or not isinstance(names, list) or not names:
            problem(f"{where}.{key}: a number with a list 'frames' expected")
            continue
        missing = [name for name in names if name not in place]
        if missing:
            problem(f"{where}.{key}.frames: {missing[0]!r} found, which is no frame of the video")
            continue
        frames = sorted(place[name] for name in names)
        prompts[int(key)] = frames[0]
        scored.update(frames)
        categories[int(key)] = str(entry.get("category", "object"))
    return {
        "instances": [Instance(object_id, 0) for object_id in prompts],
        "prompt_frames": prompts,
        "extra": {"scored_frames": sorted(scored), "object_categories": categories},
    }
