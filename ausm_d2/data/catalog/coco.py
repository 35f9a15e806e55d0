# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""COCO, and any data in COCO format, as one-frame videos. Training makes pseudo-videos of them.

COCO is also registered with the classes of the video benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import detectron2.data.datasets.builtin  # noqa: F401  (registers Detectron2's own coco_2017_*, which ours replace)
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

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
    read_shared_table,
    report_twins,
    require_categories,
)
from ausm_d2.data.catalog.base import (
    IMAGE_TOPK,
    OBJECT_CLASSES,
    OBJECT_LABEL_SET,
    class_metadata,
    find_all,
    register,
)
from ausm_d2.data.catalog.ytvis import (
    OVIS_CLASSES,
    YTVIS_2019_CLASSES,
    YTVIS_2021_CLASSES,
    default_label_set,
    numbered,
)
from ausm_d2.data.frames import ImageFiles
from ausm_d2.data.mask_sources import ListedMasks
from ausm_d2.data.problems import LeftOut, mismatch, problem
from ausm_d2.data.video import Instance, VideoRecord
from ausm_d2.ids import as_number, find_id

COCO_CLASSES = {entry["id"]: entry["name"] for entry in COCO_CATEGORIES if entry["isthing"]}

COCO_SUPER_LABEL_SET = "coco_super"
COCO_SUPER_CLASSES = numbered(
    "person vehicle outdoor animal accessory sports kitchen food furniture electronic appliance indoor"
)

# COCO category id -> category id of the benchmark, as in VITA and GenVIS.
COCO_TO_YTVIS_2019 = {
    1: 1, 2: 21, 3: 6, 4: 21, 5: 28, 7: 17, 8: 29, 9: 34, 17: 14, 18: 8, 19: 18, 21: 15, 22: 32, 23: 20, 24: 30, 25: 22,
    35: 33, 36: 33, 41: 5, 42: 27, 43: 40,
}  # fmt: skip
COCO_TO_YTVIS_2021 = {
    1: 26, 2: 23, 3: 5, 4: 23, 5: 1, 7: 36, 8: 37, 9: 4, 16: 3, 17: 6, 18: 9, 19: 19, 21: 7, 22: 12, 23: 2, 24: 40,
    25: 18, 34: 14, 35: 31, 36: 31, 41: 29, 42: 33, 43: 34,
}  # fmt: skip
COCO_TO_OVIS = {
    1: 1, 2: 21, 3: 25, 4: 22, 5: 23, 6: 25, 8: 25, 9: 24, 17: 3, 18: 4, 19: 5, 20: 6, 21: 7, 22: 8, 23: 9, 24: 10,
    25: 11,
}  # fmt: skip


def register_coco() -> None:
    """Register ``coco_2017_{train,val}`` and ``coco2{object,super,ytvis2019,ytvis2021,ovis}_{train,val}``.

    ``coco2object_*``: all classes as one. ``coco2super_*``: supercategories as classes.
    """
    identity = {category_id: category_id for category_id in COCO_CLASSES}
    for split in ("train", "val"):
        original = f"coco/annotations/instances_{split}2017.json"
        _register(f"coco_2017_{split}", [original], split, COCO_CLASSES, identity, "coco")
        _register(
            f"coco2object_{split}", [original], split, OBJECT_CLASSES, dict.fromkeys(COCO_CLASSES, 1), OBJECT_LABEL_SET
        )
        register_coco_style(f"coco2super_{split}", original, f"coco/{split}2017", COCO_SUPER_LABEL_SET)
        for benchmark, classes, mapping, label_set in (
            ("ytvis2019", YTVIS_2019_CLASSES, COCO_TO_YTVIS_2019, "ytvis_2019"),
            ("ytvis2021", YTVIS_2021_CLASSES, COCO_TO_YTVIS_2021, "ytvis_2021"),
            ("ovis", OVIS_CLASSES, COCO_TO_OVIS, "ovis"),
        ):
            # The files that other projects write for these are subsets of the original.
            files = [original, f"coco/coco2{benchmark}_{split}.json", f"coco/annotations/coco2{benchmark}_{split}.json"]
            _register(f"coco2{benchmark}_{split}", files, split, classes, mapping, label_set)


def _register(
    name: str,
    json_files: Sequence[str],
    split: str,
    classes: Mapping[int, str],
    mapping: Mapping[int, int],
    label_set: str,
) -> None:
    place = {category_id: i for i, category_id in enumerate(classes)}
    contiguous = {category_id: place[target] for category_id, target in mapping.items()}
    register(
        name,
        partial(find_all, name, {"annotation file": json_files, "image folder": [f"coco/{split}2017"]}),
        partial(_load_benchmark, name, contiguous=contiguous),
        classes=classes,
        evaluator_type="coco",
        task="image",
        label_set=label_set,
        exhaustive=True,
        topk=IMAGE_TOPK,
    )


def register_coco_style(
    name: str, json_file: str, image_root: str, label_set: str = "", exhaustive: bool = True
) -> None:
    """Register a data set of your own in COCO format.

    Args:
        name: e.g. "birds_train".
        json_file: absolute, or relative to the data root (DETECTRON2_DATASETS).
        image_root: folder that ``file_name`` is relative to; absolute, or relative to the data root.
        label_set: "object": all categories as one. "coco_super": the category's ``supercategory``, one of COCO's
            twelve. Any other: the file's categories. Default: the name without ``_train``, ``_val`` or ``_test``.
        exhaustive: every object of these categories is labelled. If not, unlabelled objects are not background, and
            clips are trained as prompted.
    """
    fixed = {OBJECT_LABEL_SET: OBJECT_CLASSES, COCO_SUPER_LABEL_SET: COCO_SUPER_CLASSES}
    label_set = label_set or default_label_set(name)
    register(
        name,
        partial(find_all, name, {"annotation file": [json_file], "image folder": [image_root]}),
        partial(_load_own, name, label_set=label_set),
        classes=fixed.get(label_set),
        evaluator_type="coco",
        task="image",
        label_set=label_set,
        exhaustive=exhaustive,
        topk=IMAGE_TOPK,
    )


def _load_benchmark(name: str, json_file: Path, image_root: Path, contiguous: Mapping[int, int]) -> list[VideoRecord]:
    data = read_shared_table(json_file)
    require_categories(json_file, read_categories(json_file, data), COCO_CLASSES, name)
    return _records(json_file, data, image_root, contiguous, COCO_CLASSES)


def _load_own(name: str, json_file: Path, image_root: Path, label_set: str) -> list[VideoRecord]:
    data = read_shared_table(json_file)
    categories = read_categories(json_file, data)
    if label_set == OBJECT_LABEL_SET:
        contiguous = dict.fromkeys(categories, 0)
    elif label_set == COCO_SUPER_LABEL_SET:
        contiguous = _supercategories(json_file, data)
    else:
        metadata = class_metadata(dict(sorted(categories.items())))
        MetadataCatalog.get(name).set(**metadata)
        contiguous = metadata["thing_dataset_id_to_contiguous_id"]
    return _records(json_file, data, image_root, contiguous, categories)


def _supercategories(json_file: Path, data: dict[str, Any]) -> dict[int, int]:
    """Index of each category's supercategory among COCO's twelve, by category id."""
    places = {class_name: place for place, class_name in enumerate(COCO_SUPER_CLASSES.values())}
    contiguous: dict[int, int] = {}
    for i, entry in enumerate(entries(json_file, data, "categories")):
        if entry.get("supercategory") not in places:
            problem(
                f"{json_file}: categories[{i}].supercategory: {entry.get('supercategory')!r} found; for the label set "
                f"{COCO_SUPER_LABEL_SET} one of {', '.join(places)} expected"
            )
        elif (category_id := as_number(entry.get("id"))) is not None:
            contiguous[category_id] = places[entry["supercategory"]]
    return contiguous


def _records(
    json_file: Path,
    data: dict[str, Any],
    image_root: Path,
    contiguous: Mapping[int, int],
    categories: Mapping[int, str],
) -> list[VideoRecord]:
    """One-frame records of the images of a COCO file.

    Args:
        json_file, data: the file and its content.
        image_root: the folder of its images.
        contiguous: contiguous class id by category id; annotations of other categories are skipped.
        categories: all valid categories; annotations of others are reported.

    Raises:
        UserError: for the first invalid entry, naming file and field.
    """
    left_out = LeftOut(str(json_file))
    records = _read_images(json_file, data, image_root)
    _read_annotations(json_file, data, records, contiguous, categories, left_out)
    left_out.warn()
    return list(records.values())


def _read_images(json_file: Path, data: dict[str, Any], image_root: Path) -> dict[int | str, VideoRecord]:
    records: dict[int | str, VideoRecord] = {}
    seen: dict[str, int | str] = {}  # ids by file
    for i, entry in enumerate(entries(json_file, data, "images")):
        where, file = f"{json_file}: images[{i}]", entry.get("file_name")
        image_id = read_id(f"{where}.id", entry.get("id"))
        if image_id is None:
            continue
        if find_id(image_id, records) is not None:
            problem(f"{where}.id: {image_id!r} found, which another image has")
            continue
        if not isinstance(file, str):
            problem(f"{where}.file_name (image {image_id}): {file!r} found, a name expected")
            continue
        size = read_pixels(where, entry, f"image {image_id}")
        if size is None:
            continue
        first = seen.setdefault(file, image_id)
        if first != image_id:
            mismatch(f"{json_file} images", f"{where}: image {image_id} has the same file as image {first}")
        frames = ImageFiles(str(image_root), (file,))
        records[image_id] = VideoRecord(image_id, PurePosixPath(file).stem, *size, frames, masks=ListedMasks({}))
    return records


def _read_annotations(
    json_file: Path,
    data: dict[str, Any],
    records: Mapping[int | str, VideoRecord],
    contiguous: Mapping[int, int],
    categories: Mapping[int, str],
    left_out: LeftOut,
) -> None:
    seen: set[int] = set()
    twins: dict[str, int] = {}
    for i, entry in enumerate(entries(json_file, data, "annotations")):
        where = f"{json_file}: annotations[{i}]"
        if read_id(f"{where}.image_id", entry.get("image_id")) is None:
            continue
        image_id = find_id(entry["image_id"], records)
        if image_id is None:
            left_out.unmatched("annotations of images that the file does not list")
            continue
        record = records[image_id]
        where = f"{where} (image {image_id})"
        instance_id = read_new_number(where, entry.get("id"), seen)
        if instance_id is None:
            continue
        category_id = find_id(entry.get("category_id"), categories)
        if not isinstance(category_id, int):
            problem(f"{where}.category_id: {entry.get('category_id')!r} found, one of the file's categories expected")
            continue
        if category_id not in contiguous:
            continue
        check_boxes([entry.get("bbox")], left_out)
        report_twins(where, entry, entry.get("segmentation"), twins, i)
        frames = [read_mask(f"{where}.segmentation", entry.get("segmentation"), record.height, record.width, left_out)]
        drop_invalid(f"{where}.segmentation", frames)
        if frames == [None]:
            left_out.add("annotations without a mask")
            continue
        assert isinstance(record.masks, ListedMasks)
        record.masks.by_instance[instance_id] = frames
        record.instances.append(Instance(instance_id, contiguous[category_id], read_crowd(where, entry)))
        if entry.get("area") is not None:  # area of the polygons
            keep_areas(record, instance_id, [entry["area"]], left_out)
