# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Labelled images in COCO format, as exported by annotation tools."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ausm_d2.data.catalog import register_coco_style
from ausm_d2.data.catalog.annotations import entries, read_categories, read_table
from ausm_d2.errors import UserError
from ausm_d2.finetune.labels import Labels, Part, require_sound, split
from ausm_d2.ids import as_number, find_id

_CHECKED = "own_checked"  # name of the data set while it is checked


def read_coco(
    path: Path,
    images: Path,
    *,
    classes: Sequence[str] = (),
    boxes_as_masks: bool = False,
    val: Path | None = None,
    val_images: Path | None = None,
    held_out: float = 0.2,
    seed: int = 1,
) -> Labels:
    """Read, check and split labelled images.

    Args:
        path, images: the annotation file, and the folder that its ``file_name`` entries are relative to.
        classes: names of the classes to learn; empty: all that have an object.
        boxes_as_masks: use the box of an annotation without a mask as its mask.
        val, val_images: labels to score on; None: hold out a part of the images.
        held_out: share of the images that is held out.

    Raises:
        UserError: the labels cannot be used. Of several problems each is logged as a warning.
    """
    table = _checked(path, images, boxes_as_masks)
    names = read_categories(path, table)
    chosen, notes = _choose(path, table, names, classes)
    ids = {names[each]: each for each in chosen}
    own = _only(table, chosen)
    others = len(table["annotations"]) - len(own["annotations"])
    notes += [f"{others} objects of other classes are left out"] if others else []
    by_image = _classes_by_image(own)
    labelled = [image for image in own["images"] if image["id"] in by_image]
    if len(labelled) < len(own["images"]):
        notes.append(f"{len(own['images']) - len(labelled)} images without an object of these classes are left out")
    if val is not None:
        other = _checked(val, val_images or images, boxes_as_masks)
        held = _as_trained(val, other, ids, notes)
        _require_apart(path, images, labelled, val, val_images or images, held["images"])
        parts = [{**own, "images": labelled}, held]
    else:
        places = split([by_image[image["id"]] for image in labelled], held_out, seed)
        if not places:
            notes.append("no image can be spared, so none is held out and nothing is scored; --val gives others")
        parts = [_part(own, labelled, [i for i in range(len(labelled)) if i not in places])]
        parts += [_part(own, labelled, places)] if places else []
    roots = (images.resolve(), (val_images or images).resolve())
    described = [
        Part("COCO_STYLE", part, root, len(part["images"]), _count(part, ids))
        for part, root in zip(parts, roots, strict=False)
    ]
    missing = [name for name, count in described[1].objects.items() if not count] if len(described) > 1 else []
    if missing:
        notes.append(f"held out is no object of {', '.join(missing)}, so that is not scored")
    return Labels(list(ids), described[0], described[1] if len(described) > 1 else None, notes)


def _checked(path: Path, images: Path, boxes_as_masks: bool) -> dict[str, Any]:
    """The checked contents of a file: every picture and mask has been read, boxes turned into masks if asked for."""
    if not images.is_dir():
        raise UserError(f"--images: no folder '{images}'")
    table = read_table(path)
    problems: list[str] = []
    if boxes_as_masks:
        problems += _draw_boxes(path, table)
    _require_masks(path, table, boxes_as_masks)
    problems += _same_pictures(path, images, table) + _same_objects(path, table)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_text(json.dumps(table), encoding="utf-8")
        register_coco_style(_CHECKED, str(copy), str(images.resolve()), label_set="object")
        require_sound(_CHECKED, str(path), problems, (str(copy), str(path)))
    known = {image["id"] for image in table["images"]}
    names = read_categories(path, table)
    for entry in table["annotations"]:  # 7, 7.0 and "7" are the same id
        entry.update(image_id=find_id(entry["image_id"], known), category_id=find_id(entry["category_id"], names))
    return table


def _has_mask(entry: dict[str, Any]) -> bool:
    """Whether an annotation has a mask at all; invalid ones are reported by the check."""
    mask = entry.get("segmentation")
    if not isinstance(mask, list):
        return bool(mask)
    return any(not isinstance(polygon, list) or (len(polygon) >= 6 and len(polygon) % 2 == 0) for polygon in mask)


def _require_masks(path: Path, table: dict[str, Any], boxes_as_masks: bool) -> None:
    annotations = entries(path, table, "annotations")
    if not annotations:
        raise UserError(f"{path}: no annotations, so there is nothing to learn")
    without = [place for place, entry in enumerate(annotations) if not _has_mask(entry)]
    if not without:
        return
    where = f"{path}: {len(without)} of {len(annotations)} annotations, the first of them annotations[{without[0]}]"
    if boxes_as_masks:
        raise UserError(f"{where}, have neither a mask (segmentation) nor a box (bbox) of x, y, width, height above 0")
    raise UserError(
        f"{where}, have no mask (segmentation of three points or more); outline the objects in the annotation tool, or "
        "add --boxes-as-masks to take each box for its object's mask, which teaches coarse masks"
    )


def _draw_boxes(path: Path, table: dict[str, Any]) -> list[str]:
    """Turn the boxes of annotations without a mask into masks, clipped to the image (in place); returns problems."""
    sizes = {image.get("id"): (image.get("width"), image.get("height")) for image in entries(path, table, "images")}
    problems = []
    for place, entry in enumerate(entries(path, table, "annotations")):
        box = entry.get("bbox")
        if _has_mask(entry) or not isinstance(box, list) or len(box) != 4:
            continue
        if not all(isinstance(each, int | float) and abs(each) < 1e6 for each in box) or min(box[2:]) <= 0:
            continue  # reported with those that have no box
        width, height = (as_number(side) or 0 for side in sizes.get(entry.get("image_id"), (0, 0)))
        x0, y0, x1, y1 = max(box[0], 0), max(box[1], 0), min(box[0] + box[2], width), min(box[1] + box[3], height)
        if x1 <= x0 or y1 <= y0:
            problems.append(f"{path}: annotations[{place}].bbox: {box}, outside of its image of {width}x{height}")
        entry["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        entry.pop("area", None)
    return problems


def _same_pictures(path: Path, images: Path, table: dict[str, Any]) -> list[str]:
    seen: dict[str, str] = {}
    problems = []
    for image in entries(path, table, "images"):
        name = str(image.get("file_name"))
        found = _digest(images / name)
        if found and seen.setdefault(found, name) != name:
            problems.append(f"{path}: images: {name!r} and {seen[found]!r} are the same picture")
    return problems


def _digest(picture: Path) -> str:
    """Digest of a picture's contents; "" if it cannot be read, which the check reports."""
    try:
        return hashlib.sha256(picture.read_bytes()).hexdigest()
    except OSError:
        return ""


def _same_objects(path: Path, table: dict[str, Any]) -> list[str]:
    """Problems: annotations that label the same object as another one."""
    seen: dict[str, int] = {}
    problems = []
    for place, entry in enumerate(entries(path, table, "annotations")):
        if not _has_mask(entry):
            continue
        key = json.dumps([entry.get("image_id"), entry["segmentation"]])
        first = seen.setdefault(key, place)
        if first != place:
            problems.append(f"{path}: annotations[{place}] has the same mask in the same image as annotations[{first}]")
    return problems


def _choose(
    path: Path, table: dict[str, Any], names: dict[int, str], classes: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Ids of the categories to learn, ascending, and notes on those that are left out."""
    unknown = [name for name in classes if name not in names.values()]
    if unknown:
        raise UserError(f"--classes: {unknown} found; {path} has {', '.join(sorted(names.values()))}")
    counts = Counter(each["category_id"] for each in table["annotations"] if not each.get("iscrowd", 0))
    empty = [name for each, name in names.items() if not counts[each] and (name in classes or not classes)]
    chosen = sorted(each for each, name in names.items() if counts[each] and (name in classes or not classes))
    if not chosen:
        wanted = ", ".join(classes or names.values())
        raise UserError(f"{path}: no object of {wanted} to learn from (crowds do not count)")
    left = f"no object of {', '.join(empty)}: left out" if empty else ""
    return chosen, [left] if left else []


def _only(table: dict[str, Any], chosen: Sequence[int]) -> dict[str, Any]:
    """The contents with these categories only."""
    kept: dict[str, Any] = {name: table[name] for name in ("info", "licenses") if name in table}
    categories = sorted((each for each in table["categories"] if each["id"] in chosen), key=lambda each: each["id"])
    annotations = [each for each in table["annotations"] if each["category_id"] in chosen]
    return {**kept, "images": table["images"], "categories": categories, "annotations": annotations}


def _as_trained(path: Path, table: dict[str, Any], ids: dict[str, int], notes: list[str]) -> dict[str, Any]:
    """The contents of the validation file, its categories mapped by name to those of the training file."""
    names = read_categories(path, table)
    chosen = [each for each, name in names.items() if name in ids]
    others = sum(each["category_id"] not in chosen for each in table["annotations"])
    if not chosen:
        raise UserError(f"{path}: its categories are {', '.join(names.values())}; one of {', '.join(ids)} expected")
    if others:
        notes.append(f"{path}: {others} objects of other classes are left out")
    own = _only(table, chosen)
    place = {each: ids[names[each]] for each in chosen}
    own["annotations"] = [
        {**each, "category_id": place[each["category_id"]]} for each in own["annotations"]
    ]
    own["categories"] = [{"id": each, "name": name} for name, each in ids.items()]
    return own


def _require_apart(
    path: Path, images: Path, train: list[dict[str, Any]], val: Path, val_images: Path, held: list[dict[str, Any]]
) -> None:
    """Raise UserError if a picture is in both parts: the score would be invalid."""
    seen = {_digest(images / image["file_name"]): image["file_name"] for image in train}
    for image in held:
        twin = seen.get(_digest(val_images / image["file_name"]))
        if twin:
            name = image["file_name"]
            raise UserError(f"{val}: {name!r} is the same picture as {twin!r} of {path}, which is trained on")


def _classes_by_image(table: dict[str, Any]) -> dict[Any, set[int]]:
    """Ids of the categories that have an object, by image id."""
    found: dict[Any, set[int]] = {}
    for each in table["annotations"]:
        if not each.get("iscrowd", 0):
            found.setdefault(each["image_id"], set()).add(each["category_id"])
    return found


def _part(table: dict[str, Any], labelled: list[dict[str, Any]], places: Sequence[int]) -> dict[str, Any]:
    images = [labelled[place] for place in places]
    ids = {image["id"] for image in images}
    annotations = [each for each in table["annotations"] if each["image_id"] in ids]
    return {**table, "images": images, "annotations": annotations}


def _count(table: dict[str, Any], ids: dict[str, int]) -> dict[str, int]:
    """Objects by class."""
    counts = Counter(each["category_id"] for each in table["annotations"] if not each.get("iscrowd", 0))
    return {name: counts[each] for name, each in ids.items()}
