# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""YouTube-VIS 2019 and 2021, OVIS, and any data in their annotation form: one JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from detectron2.data import MetadataCatalog

from ausm_d2.data.catalog.base import DEFAULT_TOPK, class_metadata, find_all, register
from ausm_d2.data.frames import ImageFiles
from ausm_d2.data.mask_sources import ListedMasks
from ausm_d2.data.problems import LeftOut, problem
from ausm_d2.data.video import Instance, VideoRecord
from ausm_d2.errors import UserError
from ausm_d2.io import read_json
from ausm_d2.masks.rle import StoredMask, first_invalid, to_rle


def numbered(names: str) -> dict[int, str]:
    """Names of classes, parted by blanks, by ids from 1 on."""
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
    """Register a data set of your own in the YouTube-VIS form; classes are those of the file's ``categories``.

    Args:
        name: e.g. "birds_train".
        json_file: absolute, or relative to the data root (DETECTRON2_DATASETS).
        image_root: the folder that the file's ``file_names`` start from; absolute or relative as well.
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
    """The label set of a data set that names none: its name without the split."""
    for split in ("_train", "_val", "_test"):
        if name.endswith(split):
            return name.removesuffix(split)
    return name


def _load_own(name: str, json_file: Path, image_root: Path) -> list[VideoRecord]:
    categories = read_categories(json_file, read_table(json_file))
    MetadataCatalog.get(name).set(**class_metadata(dict(sorted(categories.items()))))
    return load_ytvis_json(name, json_file, image_root)


# Reading


def read_table(path: Path) -> dict[str, Any]:
    """The top level of a COCO or YouTube-VIS file.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: a {type(data).__name__} found; an object with 'categories' and others expected")
    return data


def entries(path: Path, data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The list of objects under ``name``.

    Raises:
        UserError: there is none.
    """
    value = data.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        found = "nothing" if value is None else type(value).__name__
        raise UserError(f"{path}: field {name!r}: {found} found, a list of objects expected")
    return value


def read_categories(path: Path, data: dict[str, Any]) -> dict[int, str]:
    """Names of the categories by id."""
    categories: dict[int, str] = {}
    for i, entry in enumerate(entries(path, data, "categories")):
        category_id = entry.get("id")
        if not isinstance(category_id, int) or category_id < 0 or category_id in categories:
            problem(f"{path}: categories[{i}].id: {category_id!r} found, a number of its own from 0 on expected")
            continue
        categories[category_id] = str(entry.get("name", category_id))
    return categories


def require_categories(path: Path, found: Mapping[int, str], expected: Mapping[int, str], name: str) -> None:
    """The categories of a file must be those that the data set is known to have, be they written differently.

    Raises:
        UserError: they are not; with other classes every label would be wrong without anybody noticing.
    """
    for category_id, class_name in expected.items():
        if _plain(found.get(category_id, "")) != _plain(class_name):
            raise UserError(
                f"{path}: field 'categories': id {category_id} is {found.get(category_id)!r}, {class_name!r} expected "
                f"for {name}; is this the file of another data set?"
            )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def load_ytvis_json(name: str, json_file: Path, image_root: Path) -> list[VideoRecord]:
    """Read a file in the YouTube-VIS form. ``"annotations": null`` (or none at all) means that labels are not public.

    Raises:
        UserError: the first entry that is not as it must be; file and field.
    """
    data = read_table(json_file)
    metadata = MetadataCatalog.get(name)
    contiguous = metadata.thing_dataset_id_to_contiguous_id
    expected = {category_id: metadata.thing_classes[place] for category_id, place in contiguous.items()}
    require_categories(json_file, read_categories(json_file, data), expected, name)
    left_out = LeftOut(str(json_file))
    records: dict[int | str, VideoRecord] = {}
    for i, entry in enumerate(entries(json_file, data, "videos")):
        record = _read_video(f"{json_file}: videos[{i}]", entry, str(image_root), left_out)
        if record is not None and record.video_id in records:
            problem(f"{json_file}: videos[{i}].id: {record.video_id!r} found a second time")
        elif record is not None:
            records[record.video_id] = record
    if data.get("annotations") is not None:
        _read_annotations(json_file, data, records, contiguous, left_out)
    left_out.warn()
    return list(records.values())


def _read_video(where: str, entry: dict[str, Any], image_root: str, left_out: LeftOut) -> VideoRecord | None:
    files, video_id = entry.get("file_names"), entry.get("id")
    if not isinstance(video_id, (int, str)):
        problem(f"{where}.id: {video_id!r} found, a number or text expected")
        return None
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        problem(f"{where}.file_names (video {video_id}): a list of file names expected")
        return None
    if not files:
        left_out.add("videos of 0 frames")
        return None
    if entry.get("length", len(files)) != len(files):
        problem(f"{where}.length (video {video_id}): {entry['length']} found, but {len(files)} file names")
        return None
    for side in ("height", "width"):
        if not isinstance(entry.get(side), int) or entry[side] <= 0:
            problem(f"{where}.{side} (video {video_id}): {entry.get(side)!r} found, pixels expected")
            return None
    folder = PurePosixPath(files[0]).parent.name
    frames = ImageFiles(image_root, tuple(files))
    return VideoRecord(video_id, folder or str(video_id), entry["height"], entry["width"], frames)


def _read_annotations(
    path: Path,
    data: dict[str, Any],
    records: dict[int | str, VideoRecord],
    contiguous: dict[int, int],
    left_out: LeftOut,
) -> None:
    by_video: dict[int | str, dict[int, list[StoredMask | None]]] = {video_id: {} for video_id in records}
    seen: set[int] = set()
    for i, entry in enumerate(entries(path, data, "annotations")):
        where, video_id = f"{path}: annotations[{i}]", entry.get("video_id", "")
        if not is_id(f"{where}.video_id", video_id):
            continue
        record = records.get(video_id)
        if record is None:
            left_out.add("annotations of videos that the file does not list")
            continue
        where, instance_id = f"{where} (video {record.video_id})", entry.get("id", -1)
        if not is_new_id(where, instance_id, seen):
            continue
        category_id = entry.get("category_id")
        if not isinstance(category_id, int) or category_id not in contiguous:
            problem(f"{where}.category_id: {category_id!r} found, one of {list(contiguous)} expected")
            continue
        stored = entry.get("segmentations")
        if not isinstance(stored, list) or len(stored) != record.length:
            found = f"{len(stored)} entries" if isinstance(stored, list) else "no list"
            problem(f"{where}.segmentations: {found} found, one for each of {record.length} frames expected")
            continue
        check_boxes(entry.get("bboxes") or [], left_out)
        masks = [
            read_mask(f"{where}.segmentations[{t}]", mask, record.height, record.width, left_out)
            for t, mask in enumerate(stored)
        ]
        drop_invalid(f"{where}.segmentations", masks)
        if not any(mask is not None for mask in masks):
            left_out.add("annotations without any mask")
            continue
        by_video[record.video_id][instance_id] = masks
        record.instances.append(Instance(instance_id, contiguous[category_id], bool(entry.get("iscrowd", 0))))
        keep_areas(record, instance_id, entry.get("areas"), left_out)
    for video_id, record in records.items():
        record.masks = ListedMasks(by_video[video_id])


def is_id(where: str, value: Any) -> bool:
    """Whether ``value`` may be the id of a video or an image; reported where it may not."""
    if not isinstance(value, (int, str)):
        problem(f"{where}: {value!r} found, a number or text expected")
        return False
    return True


def is_new_id(where: str, instance_id: Any, seen: set[int]) -> bool:
    """Whether ``instance_id`` is a number that no entry before had; reported where it is not."""
    if not isinstance(instance_id, int) or instance_id in seen:
        problem(f"{where}.id: {instance_id!r} found, a number that no other annotation has expected")
        return False
    seen.add(instance_id)
    return True


def read_mask(where: str, mask: Any, height: int, width: int, left_out: LeftOut) -> StoredMask | None:
    """A mask as a file has it: polygons that can be used stay polygons, run lengths become compressed ones.

    Polygons of fewer than three points are left out, as Detectron2 does; None where nothing remains.
    """
    if not isinstance(mask, list):
        try:
            return to_rle(mask, height, width)
        except ValueError as error:
            problem(f"{where}: {error}")
            return None
    polygons = []
    for polygon in mask:
        if not isinstance(polygon, list) or not _finite(polygon):
            problem(f"{where}: a polygon of finite numbers x, y, x, y, ... expected")
            return None
        if len(polygon) >= 6 and len(polygon) % 2 == 0:
            polygons.append(polygon)
        else:
            left_out.add("polygons without three points")
    return polygons or None


def check_boxes(boxes: Sequence[Any], left_out: LeftOut) -> None:
    """Count boxes that hold anything but finite numbers. Boxes are not used, so nothing else comes of it."""
    for box in boxes:
        if box is not None and not (isinstance(box, list) and _finite(box)):
            left_out.add("boxes that hold no finite numbers (masks are used, not boxes)")


def keep_areas(record: VideoRecord, instance_id: int, areas: Any, left_out: LeftOut) -> None:
    """Note the areas of an instance that a file gives, pixels in each frame: sizes are by them, not by the masks."""
    if not isinstance(areas, list):
        return
    if _finite([area for area in areas if area is not None]):
        record.extra.setdefault("areas", {})[instance_id] = areas
    else:
        left_out.add("areas that are no numbers (those of the masks stand for them)")


def _finite(numbers: Sequence[Any]) -> bool:
    try:
        return math.isfinite(sum(numbers))
    except TypeError:
        return False


def drop_invalid(where: str, masks: list[StoredMask | None]) -> None:
    """Report run lengths that do not fill the frame (pycocotools would never come back from some of them)."""
    rles = {t: mask for t, mask in enumerate(masks) if isinstance(mask, dict)}
    while (first := first_invalid(list(rles.values()))) is not None:
        t = list(rles)[first]
        problem(f"{where}[{t}].counts: run lengths that do not fill {rles.pop(t)['size']} (height, width)")
        masks[t] = None
