# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""YouTube-VIS 2019 and 2021, OVIS, and any data in their annotation format: one JSON file."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from detectron2.data import MetadataCatalog

from ausm_d2.data.catalog.annotations import (
    check_boxes,
    drop_invalid,
    entries,
    keep_areas,
    read_categories,
    read_crowd,
    read_id,
    read_mask,
    read_new_number,
    read_pixels,
    read_table,
    report_twins,
    require_categories,
)
from ausm_d2.data.catalog.base import DEFAULT_TOPK, class_metadata, find_all, register
from ausm_d2.data.frames import ImageFiles
from ausm_d2.data.mask_sources import ListedMasks
from ausm_d2.data.problems import LeftOut, mismatch, problem
from ausm_d2.data.video import Instance, VideoRecord
from ausm_d2.ids import as_number, find_id
from ausm_d2.masks.rle import StoredMask
from ausm_d2.names import natural_order

logger = logging.getLogger(__name__)


def numbered(names: str) -> dict[int, str]:
    """Class names, separated by spaces, by ids from 1."""
    return dict(enumerate(names.split(), start=1))


YTVIS_2019_CLASSES = numbered(
    "person giant_panda lizard parrot skateboard sedan ape dog snake monkey hand rabbit duck cat cow fish train horse "
    "turtle bear motorbike giraffe leopard fox deer owl surfboard airplane truck zebra tiger elephant snowboard boat "
    "shark mouse frog eagle earless_seal tennis_racket"
)
YTVIS_2021_CLASSES = numbered(
    "airplane bear bird boat car cat cow deer dog duck earless_seal elephant fish flying_disc fox frog giant_panda "
    "giraffe horse leopard lizard monkey motorbike mouse parrot person rabbit shark skateboard snake snowboard "
    "squirrel surfboard tennis_racket tiger train truck turtle whale zebra"
)
OVIS_CLASSES = numbered(
    "Person Bird Cat Dog Horse Sheep Cow Elephant Bear Zebra Giraffe Poultry Giant_panda Lizard Parrot Monkey Rabbit "
    "Tiger Fish Turtle Bicycle Motorcycle Airplane Boat Vehical"
)


def register_ytvis() -> None:
    """Register ``ytvis_2019_*``, ``ytvis_2021_*`` and ``ovis_*`` (train, val, test)."""
    splits = {"train": "train", "val": "valid", "test": "test"}
    for year, classes in (("2019", YTVIS_2019_CLASSES), ("2021", YTVIS_2021_CLASSES)):
        label_set = base = f"ytvis_{year}"
        for split, folder in splits.items():
            json_files = [
                f"{base}/{folder}.json",
                f"{base}/annotations/instances_{split}_sub.json",
                f"{base}/annotations/instances_{split}.json",
                f"{base}/{folder}/instances.json",
            ]
            image_roots = [f"{base}/{folder}/JPEGImages", f"{base}/{split}/JPEGImages", f"{base}/{folder}"]
            _register_benchmark(
                f"{base}_{split}", json_files, image_roots, classes, label_set, "https://youtube-vos.org"
            )
    for split, folder in splits.items():
        json_files = [
            f"ovis/annotations/{folder}.json",
            f"ovis/annotations_{folder}.json",
            f"ovis/annotations/annotations_{folder}.json",
            f"ovis/{folder}.json",
        ]
        image_roots = [f"ovis/{folder}", f"ovis/{split}", f"ovis/images/{folder}"]
        homepage = "https://songbai.site/ovis"
        _register_benchmark(f"ovis_{split}", json_files, image_roots, OVIS_CLASSES, "ovis", homepage, topk=20)


def _register_benchmark(
    name: str,
    json_files: Sequence[str],
    image_roots: Sequence[str],
    classes: Mapping[int, str],
    label_set: str,
    homepage: str,
    topk: int = DEFAULT_TOPK,
) -> None:
    locate = partial(find_all, name, {"annotation file": json_files, "image folder": image_roots})
    read = partial(load_ytvis_json, name)
    register(
        name,
        locate,
        read,
        classes=classes,
        evaluator_type="ytvis",
        task="vis",
        label_set=label_set,
        exhaustive=True,
        topk=topk,
    )
    MetadataCatalog.get(name).set(homepage=homepage)


def register_ytvis_style(name: str, json_file: str, image_root: str, label_set: str = "") -> None:
    """Register a data set of your own in YouTube-VIS format; classes are the file's ``categories``.

    Args:
        name: e.g. "birds_train".
        json_file: absolute, or relative to the data root (DETECTRON2_DATASETS).
        image_root: folder that ``file_names`` are relative to; absolute, or relative to the data root.
        label_set: default: the name without ``_train``, ``_val`` or ``_test``.
    """
    label_set = label_set or default_label_set(name)
    locate = partial(find_all, name, {"annotation file": [json_file], "image folder": [image_root]})
    read = partial(_load_own, name)
    register(
        name,
        locate,
        read,
        classes=None,
        evaluator_type="ytvis",
        task="vis",
        label_set=label_set,
        exhaustive=True,
    )


def default_label_set(name: str) -> str:
    """The default label set of a data set: its name without the split."""
    for split in ("_train", "_val", "_test"):
        if name.endswith(split):
            return name.removesuffix(split)
    return name


def _load_own(name: str, json_file: Path, image_root: Path) -> list[VideoRecord]:
    data = read_table(json_file)
    MetadataCatalog.get(name).set(**class_metadata(dict(sorted(read_categories(json_file, data).items()))))
    return _records(name, json_file, data, image_root)


# Reading


def load_ytvis_json(name: str, json_file: Path, image_root: Path) -> list[VideoRecord]:
    """Read a benchmark's file in YouTube-VIS format.

    If ``"annotations"`` is null or missing, labels are not public.

    Raises:
        UserError: for the first invalid entry, naming file and field.
    """
    data = read_table(json_file)
    metadata = MetadataCatalog.get(name)
    contiguous = metadata.thing_dataset_id_to_contiguous_id
    expected = {category_id: metadata.thing_classes[place] for category_id, place in contiguous.items()}
    require_categories(json_file, read_categories(json_file, data), expected, name)
    return _records(name, json_file, data, image_root)


def _records(name: str, json_file: Path, data: dict[str, Any], image_root: Path) -> list[VideoRecord]:
    contiguous = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    left_out = LeftOut(str(json_file))
    records: dict[int | str, VideoRecord] = {}
    seen: dict[tuple[str, ...], int | str] = {}  # ids by files
    for i, entry in enumerate(entries(json_file, data, "videos")):
        where = f"{json_file}: videos[{i}]"
        record = _read_video(where, entry, str(image_root), left_out)
        if record is None:
            continue
        if find_id(record.video_id, records) is not None:
            problem(f"{where}.id: {record.video_id!r} found a second time")
            continue
        assert isinstance(record.frames, ImageFiles)
        first = seen.setdefault(record.frames.files, record.video_id)
        if first != record.video_id:
            mismatch(f"{json_file} videos", f"{where}: video {record.video_id} has the same frames as video {first}")
        records[record.video_id] = record
    name_videos(records.values())
    if data.get("annotations") is not None:
        _read_annotations(json_file, data, records, contiguous, left_out)
    left_out.warn()
    return list(records.values())


def _read_video(where: str, entry: dict[str, Any], image_root: str, left_out: LeftOut) -> VideoRecord | None:
    files, video_id = entry.get("file_names"), read_id(f"{where}.id", entry.get("id"))
    if video_id is None:
        return None
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        problem(f"{where}.file_names (video {video_id}): a list of file names expected")
        return None
    if not files:
        left_out.unmatched("videos of 0 frames")
        return None
    if as_number(entry.get("length", len(files))) != len(files):
        problem(f"{where}.length (video {video_id}): {entry['length']} found, but {len(files)} file names")
        return None
    size = read_pixels(where, entry, f"video {video_id}")
    if size is None:
        return None
    _check_order(f"{where}.file_names (video {video_id})", files)
    return VideoRecord(video_id, str(video_id), *size, ImageFiles(image_root, tuple(files)))


def _check_order(where: str, files: Sequence[str]) -> None:
    """Report frames that are listed twice or in lexicographic order (``f10.jpg`` before ``f2.jpg``)."""
    if len(set(files)) < len(files):
        twice = next(file for i, file in enumerate(files) if file in files[:i])
        mismatch(where, f"{where}: {twice!r} is listed twice")
    elif list(files) == sorted(files) and (in_order := sorted(files, key=natural_order)) != list(files):
        place = next(i for i, (listed, file) in enumerate(zip(files, in_order, strict=True)) if listed != file)
        mismatch(where, f"{where}: sorted as text, {files[place]!r} where {in_order[place]!r} comes first")


_GENERIC = {"img1", "images", "frames", "rgb", "color", "JPEGImages"}  # folder names that do not identify a video


def name_videos(records: Collection[VideoRecord]) -> None:
    """Name each video by its frame folder, with as many parent folders as make names unique, or else by its id."""
    parts: list[list[str]] = []
    for record in records:
        assert isinstance(record.frames, ImageFiles)
        folders = [part for part in PurePosixPath(record.frames.files[0]).parent.parts if part not in ("/", "..")]
        while folders and folders[-1] in _GENERIC:
            folders.pop()
        parts.append(folders or [str(record.video_id).replace("/", "_")])
    for used in range(1, max(map(len, parts), default=0) + 1):
        names = ["_".join(of_one[-used:]) for of_one in parts]
        if len({name.casefold() for name in names}) == len(names):
            break
    else:
        names = [str(record.video_id).replace("/", "_") for record in records]
    for record, name in zip(records, names, strict=True):
        record.name = name


def _read_annotations(
    path: Path,
    data: dict[str, Any],
    records: dict[int | str, VideoRecord],
    contiguous: dict[int, int],
    left_out: LeftOut,
) -> None:
    by_video: dict[int | str, dict[int, list[StoredMask | None]]] = {video_id: {} for video_id in records}
    seen: set[int] = set()
    twins: dict[str, int] = {}
    never_visible = 0
    for i, entry in enumerate(entries(path, data, "annotations")):
        where = f"{path}: annotations[{i}]"
        if read_id(f"{where}.video_id", entry.get("video_id")) is None:
            continue
        video_id = find_id(entry["video_id"], records)
        if video_id is None:
            left_out.unmatched("annotations of videos that the file does not list")
            continue
        record = records[video_id]
        where = f"{where} (video {video_id})"
        instance_id = read_new_number(where, entry.get("id"), seen)
        if instance_id is None:
            continue
        category_id = find_id(entry.get("category_id"), contiguous)
        if not isinstance(category_id, int):
            problem(f"{where}.category_id: {entry.get('category_id')!r} found, one of {list(contiguous)} expected")
            continue
        stored = entry.get("segmentations")
        if not isinstance(stored, list) or len(stored) != record.length:
            found = f"{len(stored)} entries" if isinstance(stored, list) else "no list"
            problem(f"{where}.segmentations: {found} found, one for each of {record.length} frames expected")
            continue
        check_boxes(entry.get("bboxes") or [], left_out)
        report_twins(where, entry, stored if any(stored) else None, twins, i)
        masks = [
            read_mask(f"{where}.segmentations[{t}]", mask, record.height, record.width, left_out)
            for t, mask in enumerate(stored)
        ]
        drop_invalid(f"{where}.segmentations", masks)
        if any(mask is not None for mask in masks):
            by_video[video_id][instance_id] = masks
        else:  # the official evaluator counts it as an object to be found
            never_visible += 1
        record.instances.append(Instance(instance_id, contiguous[category_id], read_crowd(where, entry)))
        keep_areas(record, instance_id, entry.get("areas"), left_out)
    if never_visible:
        logger.warning(
            "%s: %d annotations without any mask; each counts as an object that is never found, as in the official "
            "evaluator",
            path,
            never_visible,
        )
    for video_id, record in records.items():
        record.masks = ListedMasks(by_video[video_id])
